"""Which algorithm, protection and compression a run uses: one value, checked as a whole.

It travels as JSON in one environment variable, FL_OPTIONS, that server and clients read alike;
empty means the published workload (FedAvg, float32, PyTorch clients). A parameter of an option
that is not chosen is refused, because it would change nothing, and so are options that
exclude each other. Standard library only: the command line that starts a run reads the choices, the
ranges and the help from here before anything is started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fl.errors import ConfigError
from fl.option_fields import OptionError, check_field, choice, is_needed, number, switch

__all__ = ("FlOptions", "OptionError", "read_options")


@dataclass(frozen=True, kw_only=True)
class FlOptions:
    """What `ztprobe trace --fl-...` asks for; a field `x_y` is the option `--fl-x-y`.

    :raises OptionError: a value is out of range, superfluous, or excludes another.
    """

    algorithm: str = choice(
        "Training and server step.", "fedavg", "fedprox", "fedadagrad", "fedadam", "fedyogi"
    )
    prox_mu: float | None = number(
        "FedProx' weight of the distance to the round's model.", float, 0.01, "algorithm=fedprox", 1e-9
    )
    server_lr: float | None = number(
        "Step length of the server's optimiser.", float, 0.01, "algorithm=fedadagrad|fedadam|fedyogi", 1e-9
    )
    server_tau: float | None = number(
        "The server optimiser's degree of adaptivity.",
        float,
        1e-3,
        "algorithm=fedadagrad|fedadam|fedyogi",
        1e-12,
    )
    aggregation: str = choice("How updates become one.", "mean", "median", "trimmed-mean", "krum")
    byzantine: int | None = number(
        "Clients that may be hostile: trimmed at each end, or Krum's f.",
        int,
        1,
        "aggregation=trimmed-mean|krum",
        1,
    )
    inspect: bool = switch(
        "Log each update's norm and direction and flag unusual ones (always done with robust "
        "aggregation and with an attack)."
    )
    compression: str = choice("Of clients' updates.", "none", "fp16", "int8", "top-k")
    top_k: int | None = number("Values that an update keeps.", int, 12_000, "compression=top-k", 1)
    privacy: str = choice("dp: client-level differential privacy.", "none", "dp")
    dp_epsilon: float | None = number(
        "What all rounds together may spend; decides the noise.", float, 8.0, "privacy=dp", 1e-3
    )
    dp_noise_multiplier: float | None = number(
        "The noise itself, in clips, instead of epsilon.", float, None, "privacy=dp", 1e-3, 1e6
    )
    dp_delta: float | None = number(
        "The probability that epsilon does not hold.", float, 1e-5, "privacy=dp", 1e-12, 0.1
    )
    dp_clip: float | None = number("The longest update.", float, 0.5, "privacy=dp", 1e-9)
    secure_aggregation: str = choice("masks: the server sees only the updates' sum.", "none", "masks")
    secure_threshold: int | None = number(
        "Clients that have to stay to the end; two thirds and one unless given.",
        int,
        None,
        "secure_aggregation=masks",
        2,
    )
    secure_phase_s: float | None = number(
        "How long an exchange without training may take.", float, 20.0, "secure_aggregation=masks", 0.1, 3600
    )
    attack: str = choice("What the last clients do to their updates.", "none", "sign-flip", "scale")
    attackers: int | None = number("How many clients attack.", int, 1, "attack=sign-flip|scale", 1)
    attack_scale: float | None = number("Factor of a scaled update.", float, 10.0, "attack=scale", 1e-9)
    edges: int | None = number(
        "Edge aggregators between clients and server; none unless given.", int, None, None, 1
    )
    client: str = choice("torch trains; synthetic spends CPU time instead.", "torch", "synthetic")
    synthetic_compute_ms: float | None = number(
        "CPU time that a synthetic client spends on a round.", float, 100.0, "client=synthetic", 0, 3_600_000
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            check_field(self, one.name, one.metadata)
        if self.dp_noise_multiplier is not None and self.dp_epsilon is not None:
            raise OptionError("dp_noise_multiplier", "decides epsilon: give one of the two")
        if self.privacy == "dp" and self.aggregation != "mean":
            raise OptionError("privacy", f"dp is accounted for the mean, not for {self.aggregation}")
        if self.secure_aggregation == "masks":
            for name, plain in (("aggregation", "mean"), ("compression", "none"), ("inspect", False)):
                if getattr(self, name) != plain:
                    problem = f"{name} {getattr(self, name)} works on single updates, which nobody sees"
                    raise OptionError("secure_aggregation", problem.replace(" True", ""))
        if self.edges is not None and not self._takes_means:
            raise OptionError("edges", "an edge sends up a mean, and another option needs single updates")

    def of(self, name: str) -> Any:
        """A field's value, or what is used where it was not given."""
        value = getattr(self, name)
        return type(self).__dataclass_fields__[name].metadata.get("effective") if value is None else value

    @property
    def inspects(self) -> bool:
        """Whether the server looks at single updates."""
        wanted = self.inspect or self.attack != "none" or self.aggregation != "mean"
        return wanted and self.secure_aggregation == "none"

    @property
    def _takes_means(self) -> bool:
        # Whether a mean of some updates is as good to the server as the updates themselves.
        plain = self.aggregation == "mean" and self.privacy == self.secure_aggregation == "none"
        return plain and not self.inspects

    def threshold(self, clients: int) -> int:
        """How many clients secure aggregation needs to the end."""
        return self.secure_threshold or 2 * clients // 3 + 1

    def check(self, *, clients: int, parameters: int) -> None:
        """Hold the options against the run's size. :raises OptionError: they do not fit."""
        if self.compression == "top-k" and self.of("top_k") > parameters:
            raise OptionError("top_k", f"{self.of('top_k')} is above the model's {parameters} values")
        if self.attack != "none" and self.of("attackers") >= clients:
            raise OptionError("attackers", f"{self.of('attackers')} of {clients} clients leave nobody honest")
        if self.secure_aggregation == "masks" and not 2 <= self.threshold(clients) <= clients:
            raise OptionError(
                "secure_threshold",
                f"{self.threshold(clients)} is above the {clients} clients"
                if clients > 1
                else "one client has nobody to hide among",
            )
        if self.edges is not None and self.edges > clients:
            raise OptionError("edges", f"{self.edges} are above the {clients} clients")
        hostile = self.of("byzantine")
        if self.aggregation == "trimmed-mean" and 2 * hostile >= clients:
            raise OptionError("byzantine", f"trimming {hostile} at each end of {clients} clients leaves none")
        if self.aggregation == "krum" and clients < 2 * hostile + 3:
            raise OptionError(
                "byzantine", f"Krum needs 2f + 3 = {2 * hostile + 3} clients, there are {clients}"
            )

    def given(self) -> dict[str, Any]:
        """What differs from the defaults, ready for JSON."""
        return {one.name: v for one in fields(self) if (v := getattr(self, one.name)) != one.default}

    def effective(self) -> dict[str, Any]:
        """Every field that has a meaning in this run, with the value that is used."""
        return {
            name: self.of(name)
            for name in asdict(self)
            if is_needed(self, type(self).__dataclass_fields__[name].metadata.get("needs"))
            and self.of(name) is not None
        }


def read_options(env: Mapping[str, str]) -> FlOptions:
    """FL_OPTIONS of the environment. :raises ConfigError: not JSON, an unknown name or a bad value."""
    text = env.get("FL_OPTIONS", "") or "{}"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"FL_OPTIONS is not JSON: {error}") from None
    names = [one.name for one in fields(FlOptions)]
    if not isinstance(found, dict) or (unknown := sorted(set(found) - set(names))):
        what = f"unknown {', '.join(unknown)}" if isinstance(found, dict) else f"{text[:40]!r} is no object"
        raise ConfigError(f"FL_OPTIONS: {what}; known are {', '.join(names)}")
    return FlOptions(**found)
