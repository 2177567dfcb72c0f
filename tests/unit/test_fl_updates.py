"""From trained vector to update: attacks; and the synthetic client's part."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from fl import wire
from fl.compression import decode
from fl.errors import WireError
from fl.options import FlOptions
from fl.shapes import MODELS, size_of
from fl.synthetic import SyntheticTrainer
from fl.trainer import Trained
from fl.updates import UpdateMaker
from fl.wire import Encoding
from tests.fl_simulation import client_config

MODEL = np.float32([1, 2, 3, 4])
TRAINED = Trained(vector=np.float32([1.5, 2, 3, 2]), num_examples=7, loss=0.5)


def update_of(index: int, **options: object) -> wire.Message:
    chosen = FlOptions(**options)  # type: ignore[arg-type]
    maker = UpdateMaker(client_config(index, 5, chosen), 4)
    return wire.decode(maker.encode(TRAINED, MODEL if maker.needs_model else None, 3))


def test_a_plain_update_is_what_was_trained() -> None:
    message = update_of(0)
    assert (message.client_id, message.round, message.num_examples) == ("fl-client-0", 3, 7)
    assert message.body.tolist() == TRAINED.vector.tolist()


def test_attackers_are_the_last_clients() -> None:
    flipped = update_of(4, attack="sign-flip")
    assert flipped.body.tolist() == [0.5, 2, 3, 6]
    assert update_of(3, attack="sign-flip").body.tolist() == TRAINED.vector.tolist()
    assert update_of(3, attack="sign-flip", attackers=2).body.tolist() == flipped.body.tolist()
    assert update_of(4, attack="scale", attack_scale=10.0).body.tolist() == [6, 2, 3, -16]


def test_an_attack_is_compressed_as_an_honest_update_is() -> None:
    message = update_of(4, attack="sign-flip", compression="top-k", top_k=1)
    assert message.encoding is Encoding.TOP_K
    assert decode(message.encoding, message.payload, 4).tolist() == [0, 0, 0, 2]


def test_shapes_without_torch_are_those_with_it() -> None:
    from fl.model import Model

    assert size_of("cnn") == 1_199_882
    for name in MODELS:
        assert Model(name=name).vector.size == size_of(name)


def test_a_synthetic_client_spends_the_cpu_time_given() -> None:
    options = FlOptions(client="synthetic", synthetic_compute_ms=150.0)
    trainer = SyntheticTrainer(client_config(1, 5, options))
    model = np.random.default_rng(0).normal(size=trainer.size).astype(np.float32)
    trainer.load(model)
    begin_ns = time.thread_time_ns()
    trained = trainer.train(1)
    spent_ms = (time.thread_time_ns() - begin_ns) / 1e6
    assert 150 <= spent_ms < 153
    delta = trained.vector - model
    assert np.linalg.norm(delta) == pytest.approx(0.5, rel=1e-3)
    assert trained.num_examples == 1


def test_synthetic_updates_depend_on_client_and_round_and_can_be_repeated() -> None:
    options = FlOptions(client="synthetic", synthetic_compute_ms=0.0)

    def made(index: int, number: int) -> bytes:
        trainer = SyntheticTrainer(client_config(index, 5, options, model="narrow"))
        trainer.load(np.zeros(trainer.size, dtype=np.float32))
        return trainer.train(number).vector.tobytes()

    assert made(0, 1) == made(0, 1)
    assert len({made(0, 1), made(1, 1), made(0, 2)}) == 3


def test_a_synthetic_client_refuses_another_model() -> None:
    trainer = SyntheticTrainer(client_config(0, 5, FlOptions(client="synthetic"), model="narrow"))
    with pytest.raises(WireError, match="expected"):
        trainer.load(np.zeros(3, dtype=np.float32))


def test_a_synthetic_client_loads_neither_torch_nor_a_data_set() -> None:
    program = (
        "import sys; from fl.preload_light import preload; preload('digits');"
        "print(*sorted({'torch', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
