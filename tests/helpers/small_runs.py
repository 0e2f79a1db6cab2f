"""Small training runs: configurations, trainers, and runs that are killed at a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import tiny_models

from sparse_ir.training.configuration import config_parser
from sparse_ir.training.encoders import trainable_decoder
from sparse_ir.training.loop.trainer import Trainer
from sparse_ir.training.sources import pairs

WORDS = " ".join(tiny_models.SENTENCES).lower().replace(",", "").replace(".", "").split()


def write_pairs(path: Path) -> Path:
    """40 questions made of three words of their documents, with teacher scores for one negative
    each.
    """
    rng = np.random.default_rng(1)
    documents = [" ".join(rng.choice(WORDS, 12)) for _ in range(40)]
    with path.open("w") as stream:
        for number, text in enumerate(documents):
            stream.write(
                json.dumps(
                    {
                        "query": " ".join(rng.choice(text.split(), 3)),
                        "positive": text,
                        "negative": documents[(number + 7) % 40],
                        "positive_scores": [2.0],
                        "negative_scores": [0.5],
                    }
                )
                + "\n"
            )
    return path


def make_config(start: Path, path: Path, /, **sections):
    table = {
        "model": {
            "start": str(start),
            "query": "idf",
            "max_length": 24,
            "query_max_length": 12,
            "dropout": 0.0,
        },
        "data": [{"path": str(path), "name": "toy"}],
        "batch": {"queries": 8},
        "loss": [{"name": "info_nce"}],
        "documents": {"penalty": "flops", "weight": 1e-3, "ramp_steps": 4},
        "optimizer": {"learning_rate": 1e-3},
        "run": {"steps": 8, "save_every": 2, "log_every": 1, "tensorboard": False, "seed": 3},
    }
    for name, value in sections.items():
        table[name] = {**table[name], **value} if isinstance(table.get(name), dict) else value
        if isinstance(value, dict):
            table[name] = {key: part for key, part in table[name].items() if part is not None}
    ranking = table["run"]["steps"] - table.get("warm_start", {}).get("steps", 0)
    for side in ("documents", "queries"):
        if "ramp_steps" in table.get(side, {}):
            table[side]["ramp_steps"] = min(table[side]["ramp_steps"], ranking)
    return config_parser.parse_config(table)


def make_decoder_config(start, path, mode="causal", **sections):
    model = {
        "query": "neural",
        "max_length": 60,
        "query_max_length": 40,
        "saved_max_length": 80,
        "dropout": 0.0,
        **sections.pop("model", {}),
    }
    decoder = {"mode": mode, "logit_shift": 2.0, **sections.pop("decoder", {})}
    return make_config(
        start,
        path,
        **{
            "model": model,
            "decoder": decoder,
            "run": {"steps": 4},
            "batch": {"queries": 4},
            **sections,
        },
    )


def open_decoder(folder, mode="causal", **sections):
    config = make_decoder_config(folder, "nothing", mode, **sections)
    return config, trainable_decoder.open_trainable(config)[1]


def make_trainer(config, folder, **options):
    sources = [pairs.read_source(each.path, name=each.name) for each in config.data]
    return Trainer(config, sources, folder, **options)


class Killed(Exception):
    pass


def kill_at(monkeypatch, step):
    original = Trainer.take_step

    def maybe(self, number):
        if number == step:
            raise Killed
        return original(self, number)

    monkeypatch.setattr(Trainer, "take_step", maybe)


class Constant:
    """A teacher that likes every document as much as it is long."""

    fingerprint: ClassVar[dict[str, str]] = {"kind": "constant"}

    def scores(self, queries, documents, wanted_QD):
        return np.tile(
            np.array([len(text) for text in documents], dtype=np.float32), (len(queries), 1)
        )
