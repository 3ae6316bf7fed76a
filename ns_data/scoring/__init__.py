"""Scoring: composites of competition groups, their scores, and the loss weights made of them. Torch only."""
