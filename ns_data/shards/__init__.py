"""Shards: data sets as plain WebDataset tars with a strict index, read at random by any plan."""
