"""Expected values of losses: the file, and the rules that turn each of its entries into one of our losses.

The file holds what every method's published code computed in float64. ``NS_LOSS_GOLDENS`` names another file of the same form.
An entry is found by its ``loss`` and read by its ``hparams``, both by name: what a rule does not know is an error, so that no
setting of an entry is passed over.
"""

import json
import os
import re
from pathlib import Path

import numpy as np

from ns_data import LOSSES, ClassStats

OWN = Path(__file__).parent.parent / "data" / "losses.json"


class NotMappedError(Exception):
    """An entry of a loss that we have, with something in it that no rule knows."""


def read():
    """The file that the environment names, or our own."""
    return json.loads(Path(os.environ.get("NS_LOSS_GOLDENS") or OWN).read_text())


def options_of(hparams, names, fixed=()):
    """``hparams`` under our names. ``names``: theirs -> ours; ``fixed``: theirs -> the one value that our loss has."""
    fixed = dict(fixed)
    options = {}
    for key, value in hparams.items():
        if key in names:
            options[names[key]] = value
        elif key not in fixed or value != fixed[key]:
            raise NotMappedError(f"hparam {key}={value!r}")
    return options


def same(*names):
    return {name: name for name in names}


def _focal(entry):
    names = {**same("gamma", "alpha"), "detach_modulating_factor": "detach"}
    return "focal", options_of(entry["hparams"], names)


def _gce(entry):
    return "gce", options_of(entry["hparams"], {"q": "q", "clamp_min": "min_p"})


def _gce_truncated(entry):
    options = options_of(entry["hparams"], {**same("q", "k"), "clamp_min": "min_p"})
    return "gce", {"min_p": None, **options, "num_samples": 1000, "start_prune": 1}


def _sce(entry):
    names = {**same("alpha", "beta"), "A": "log_zero", "rce_clamp_min": "rce_min_p", "ce_clamp_min": "ce_min_p"}
    options = options_of(entry["hparams"], names)
    options["log_zero"] = logarithm(options["log_zero"])
    return "sce", options


def logarithm(value):
    """A number, or one written as log(1e-4) or log10(1e-4)."""
    if isinstance(value, str) and (match := re.fullmatch(r"log(10)?\(([0-9.e+-]+)\)", value)):
        return float(np.log10(float(match[2])) if match[1] else np.log(float(match[2])))
    return float(value)


_APL = {**same("active", "passive", "alpha", "beta", "gamma", "q"), "scale": "mae_scale", "mae_scale": "mae_scale"}


def _apl(entry):
    return "apl", options_of(entry["hparams"], _APL)


def _apl_term(kind, terms, alpha, beta):
    def rule(entry):
        """The term is told by the name of the entry, its first word."""
        term = re.split(r"[^a-z]", entry["id"])[0]
        if term not in terms:
            raise NotMappedError(f"{kind} term of {entry['id']}")
        return "apl", {kind: term, "alpha": alpha, "beta": beta, **options_of(entry["hparams"], _APL)}

    return rule


def _anl(entry):
    hparams = dict(entry["hparams"])
    active = hparams.setdefault("active", "nce")
    partner = {"nce": "nnce", "nfl": "nnfl"}[active]
    names = {**same("active", "alpha", "beta", "delta", "gamma"), "min_prob": "min_p"}
    return "anl", options_of(hparams, names, {"negative": partner})


def _aul(entry):
    return "aul", options_of(entry["hparams"], same("a", "q", "alpha", "beta"))


def _poly(entry):
    return "poly", options_of(entry["hparams"], same("epsilon1"))


def _ce_eps(entry):
    names = {**same("alpha", "beta", "m", "mae_scale"), "clamp_min": "min_s"}
    return "ce_eps_mae", options_of(entry["hparams"], names)


def _ce_eps_alone(entry):
    name, options = _ce_eps(entry)
    return name, {"alpha": 1.0, "beta": 0.0, **options}


def _low(entry):
    scales = {"batch-mean": "batch_mean", "per-sample": "per_sample"}
    options = options_of(entry["hparams"], {"lamb": "lam", "grad_norm_of": "grad_scale"})
    scale = re.split(r"[ _]", options.get("grad_scale", "batch-mean"))[0]
    if scale not in scales:
        raise NotMappedError(f"grad_norm_of {options['grad_scale']!r}")
    return "low", {**options, "grad_scale": scales[scale]}


def _nlnl(entry):
    options = options_of(entry["hparams"], {"ln_neg": "num_negatives"}, {"clamp_min": 1e-5})
    weights = np.array(entry["extra"]["class_weights"])
    for largest in range(1, 10_000):  # whole class counts with these n_max / n_c
        counts = largest / weights
        if np.allclose(counts, counts.round(), rtol=1e-9):
            return "nlnl", {**options, "stats": ClassStats(counts.round().astype(int))}
    raise NotMappedError("class_weights that no class counts up to 10,000 give")


def _ogc(base):
    def rule(entry):
        names = {
            **same("epsilon", "gamma", "q"),
            "time_frame_s": "every",
            "queue_size_q": "queue_size",
            **same("prob_thr", "tau", "lr"),  # a state, not options: for the check
        }
        fixed = {
            "binary_search_tol": 1e-7,
            "binary_search_max_iter": 10,
            "grid": 1000,
            "min_prob": 1e-7,
            "max_prob": 0.9999999,
            "tol": 1e-7,
            "max_iter": 10,
        }
        options = options_of(entry["hparams"], names, fixed)
        state = {key: options.pop(key) for key in ("prob_thr", "tau", "lr") if key in options}
        return "ce_ogc", {"base": base, **options}, state

    return rule


def _ls(entry):
    return "label_smoothing", options_of(entry["hparams"], same("smoothing"))


def _ce(entry):
    return "cross_entropy", options_of(entry["hparams"], {})


def _logit_adjustment(entry):
    options = options_of(entry["hparams"], {"tau": "tau", "counts": "counts", "class_counts": "counts"})
    return "logit_adjustment", {**options, "stats": ClassStats(np.array(options.pop("counts")))}


RULES = {
    "CE": _ce,
    "Logit adjustment": _logit_adjustment,
    "Focal": _focal,
    "GCE": _gce,
    "GCE (truncated Lq, all weights 1)": _gce_truncated,
    "GCE (truncated Lq, pruning rule)": _gce_truncated,
    "LS": _ls,
    "SCE": _sce,
    "APL": _apl,
    "APL (active term alone)": _apl_term("active", ("nce", "nfl", "ngce"), 1.0, 0.0),
    "APL (passive term alone)": _apl_term("passive", ("mae", "rce"), 0.0, 1.0),
    "ANL": _anl,
    "AUL": _aul,
    "AUL (NCE+AUL)": _aul,
    "PolyLoss": _poly,
    "CE_eps+MAE": _ce_eps,
    "CE_eps+MAE (CE_eps alone)": _ce_eps_alone,
    "LOW": _low,
    "NLNL (stage 1, NL)": _nlnl,
    "CE+OGC": _ogc("cross_entropy"),
    "FL+OGC": _ogc("focal"),
    "GCE+OGC": _ogc("gce"),
}
NOT_BUILT = ("NLNL (stage 2, SelNL)", "NLNL (stage 3, SelPL)")


def map_entry(entry):
    """(loss, its state in the entry), or None for a stage of NLNL that is not built and for a loss that we do not have."""
    kind = entry["loss"]
    if kind in NOT_BUILT:
        return None
    if kind not in RULES:
        ours = {word for known in [*RULES, *LOSSES] for word in _words(known)}
        if ours & set(_words(kind)):
            raise NotMappedError(f"loss {kind!r}")
        return None
    name, options, *state = RULES[kind](entry)
    return LOSSES[name](**options), (state[0] if state else {})


def _words(kind):
    """What a loss is called, without the remark in brackets."""
    return [word for word in re.split(r"[^a-z0-9]+", kind.lower().partition("(")[0]) if word]
