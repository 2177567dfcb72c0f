import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from ztprobe.errors import UsageError
from ztprobe.experiment.request import TraceRequest, check_data_dir, choose_experiments
from ztprobe.profile.model import Profile

PROFILES = ("net0", "net2")
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def choose(name: str, *, baseline: str | None = None, with_baseline: bool = True, seed: int | None = None):
    experiment, against = choose_experiments(
        name, PROFILES, baseline_name=baseline, with_baseline=with_baseline, seed=seed
    )
    return experiment.name, against and against.name


def test_the_baseline_is_on_unless_it_is_the_experiment_itself() -> None:
    assert choose("net2-sec3") == ("net2-sec3", "net0-sec0")
    assert choose("net0-sec0") == ("net0-sec0", None)
    assert choose("net2-sec3", with_baseline=False) == ("net2-sec3", None)
    assert choose("net0-sec0", baseline="net0-sec0") == ("net0-sec0", "net0-sec0")


def test_the_seed_goes_to_both() -> None:
    assert choose("net2-sec3", seed=7) == ("net2-sec3-s7", "net0-sec0-s7")
    assert choose("net2-sec3", baseline="net2-sec0", seed=7) == ("net2-sec3-s7", "net2-sec0-s7")


def test_a_baseline_cannot_be_both_wanted_and_refused() -> None:
    with pytest.raises(UsageError, match="contradict"):
        choose("net2-sec3", baseline="net0-sec0", with_baseline=False)


def test_a_profile_of_ones_own_gives_the_run_its_name() -> None:
    own = Profile(name="cable", delay_ms=7)
    experiment, against = choose_experiments(
        "net0-sec3-noniid", PROFILES, profile=own, baseline_name=None, with_baseline=True, seed=4
    )
    assert against is not None
    assert (experiment.name, against.name) == ("cable-sec3-noniid-s4", "net0-sec0-noniid-s4")
    assert experiment.shaped
    request = TraceRequest(
        experiment=experiment,
        baseline=against,
        rounds=1,
        clients=1,
        dataset="digits",
        data_dir=None,
        out=Path("/nonexistent"),
        reconnect=False,
        profile=own,
    )
    assert request.profile_of(experiment) is own
    assert request.profile_of(against).name == "net0"


def test_a_profile_of_ones_own_has_a_name_of_its_own() -> None:
    with pytest.raises(UsageError, match=r"its name net2 is a shipped profile's"):
        choose_experiments(
            "net0-sec3",
            PROFILES,
            profile=Profile(name="net2", delay_ms=7),
            baseline_name=None,
            with_baseline=False,
            seed=None,
        )


def write_idx(path: Path) -> None:
    content = b"\0\0\x08\x01" + (1000).to_bytes(4, "big") + bytes(range(250)) * 4
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_data_files_are_found_plain_or_packed_in_both_layouts(
    tmp_path: Path, folder: str, suffix: str
) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        write_idx(tmp_path / folder / f"{name}{suffix}")
    assert check_data_dir("fashion-mnist", tmp_path) == tmp_path


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    for name in FILES[:3]:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"1 of the files of mnist .* t10k-labels-idx1-ubyte"):
        check_data_dir("mnist", tmp_path)


def test_files_need_a_directory_and_digits_refuses_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs --data-dir.*train-images-idx3-ubyte"):
        check_data_dir("mnist", None)
    with pytest.raises(UsageError, match="digits is built in"):
        check_data_dir("digits", tmp_path)
    assert check_data_dir("digits", None) is None


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"", "is not an IDX file|is not an IDX file"),
        (
            lambda raw: b"PK\x03\x04" + raw,
            "is not an IDX file of unsigned bytes|is damaged: Not a gzipped file",
        ),
        (lambda raw: raw[:-100], r"announces \[1000\] bytes and holds 900|is damaged"),
        (lambda raw: raw + b"x" * 9, "holds more|is damaged"),
        (lambda raw: raw[:30] + bytes(20) + raw[50:], "|is damaged"),
        (lambda raw: b"\0\0\x08\x01\xff\xff\xff\xff", "announces 4294967295 bytes, at most|is damaged"),
        (lambda raw: b"\0\0\x08\x01\0", "ends within its header|is damaged"),
    ],
)
def test_damaged_data_files_are_named_before_anything_starts(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], said: str
) -> None:
    plain, packed = said.split("|")
    for name in FILES:
        write_idx(tmp_path / f"{name}{suffix}")
    file = tmp_path / f"{FILES[1]}{suffix}"
    file.write_bytes(damage(file.read_bytes()))
    if not suffix and not plain:
        assert (
            check_data_dir("mnist", tmp_path) == tmp_path
        )  # other pixels are no damage that anybody could see
        return
    with pytest.raises(UsageError, match=packed if suffix else plain) as raised:
        check_data_dir("mnist", tmp_path)
    assert f"--data-dir {tmp_path}: {file}: " in str(raised.value)
    assert len(str(raised.value).replace(str(tmp_path), "")) < 250


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    for name in FILES:
        write_idx(tmp_path / name)
    bomb = b"\0\0\x08\x01" + (1000).to_bytes(4, "big") + bytes(64 << 20)
    (tmp_path / FILES[0]).unlink()
    (tmp_path / f"{FILES[0]}.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(UsageError, match=r"announces \[1000\] bytes and holds more"):
        check_data_dir("mnist", tmp_path)
