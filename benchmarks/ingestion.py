"""Ingestion beside parsers that only parse: plain FASTA and gzip, on one core and on two.

The input is the sample's proteins, repeated with fresh identifiers to at least 1 GB. Every run is a
process of its own, and they take turns; it reads everything once before the run that counts, so that its
libraries are loaded, its loops compiled and its memory at hand. Ratios are medians over turns that stood side by side.
"write" writes as many bytes as a corpus has to a new file and does nothing else: no ingestion can be faster.
Parsers that are not installed (pyfastx, needletail) are left out, and the tables then say so.
Results: ingestion.csv (speeds), ingestion_ratios.csv (the claims), ingestion_stages.csv (where the
time goes), ingestion_memory.csv and ingestion_projection.csv, in benchmarks/results/. Needs 8 GB in the
folder of temporary files (TMPDIR); in a file system in memory the disk is left out of it.
Run it alone on the machine: python benchmarks/run.py ingestion
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from machine import describe
from measuring import RESULTS, Row, markdown, ratio, write_rows
from proc_files import proc_bytes

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data_manifests" / "sample" / "uniprotkb_sample.fasta.xz"
INPUT_BYTES = 1_050_000_000
TURNS = 4
PIECE = 1 << 20
# records and residues, as data_manifests/*.toml give them; of UniRef100 only the records are known, so
# its records are taken to be as long as UniRef90's
RELEASES = {
    "UniRef50": (60_300_000, 17.3e9),
    "UniRef90": (189_000_000, 66.4e9),
    "UniRef100": (357_000_000, 357 / 189 * 66.4e9),
}
SWISS_PROT_RECORDS = 574_000
# mean bytes of a UniRef90 header with its line end, counted over 1,000 records
UNIREF_HEADER = 120
LINE = 60


def pyfastx(path: Path, _: Path) -> int:
    from pyfastx import Fastx

    return sum(1 for _ in Fastx(str(path)))


def needletail(path: Path, _: Path) -> int:
    from needletail import parse_fastx_file

    return sum(1 for _ in parse_fastx_file(str(path)))


def simple_fasta_parser(path: Path, _: Path) -> int:
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    with path.open() as file:
        return sum(1 for _ in SimpleFastaParser(file))


def seqio(path: Path, _: Path) -> int:
    from Bio import SeqIO

    return sum(1 for _ in SeqIO.parse(path, "fasta"))


def igzip(path: Path, _: Path) -> int:
    from isal import igzip_lib

    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    size = 0
    with path.open("rb") as file:
        # a limit is the fastest way to call it: without one the library makes its buffer larger again and again
        while not inflater.eof:
            size += len(inflater.decompress(file.read(PIECE) if inflater.needs_input else b"", PIECE))
    return size


def write(path: Path, output: Path) -> int:
    share = 0.8  # bytes of a corpus for each byte of FASTA
    piece = os.urandom(PIECE)
    with output.open("wb", buffering=0) as file:
        return sum(file.write(piece) for _ in range(int(share * path.stat().st_size) // PIECE))


def ingest(duplicates: str) -> Callable[[Path, Path], dict[str, float]]:
    def run(path: Path, output: Path) -> dict[str, float]:
        from proteinlm.corpus import Effort, IngestionConfig
        from proteinlm.corpus import ingest as build
        from proteinlm.sequence import ScreeningConfig

        config = IngestionConfig(screening=ScreeningConfig(duplicates=duplicates))
        effort = Effort(jobs=len(os.sched_getaffinity(0)))
        return dict(build([path], output, config=config, effort=effort).timings)

    return run


RUNS: dict[str, Callable[[Path, Path], object]] = {
    "Bio.SeqIO": seqio,
    "SimpleFastaParser": simple_fasta_parser,
    "needletail": needletail,
    "pyfastx": pyfastx,
    "igzip": igzip,
    "write": write,
    "ingest": ingest("ignore"),
    "ingest, duplicates counted": ingest("count"),
}
OPTIONAL = ["needletail", "pyfastx"]


def child(name: str, path: Path, cores: int) -> None:
    """Run twice in this process and print what the second run took."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            start = time.perf_counter()
            found = RUNS[name](path, Path(folder) / "corpus")
            taken = time.perf_counter() - start
    peak = proc_bytes("self/status", "VmHWM")
    stages = found if isinstance(found, dict) else {}
    print(json.dumps({"seconds": taken, "peak": peak, "stages": stages}))


def measured(name: str, path: Path, cores: int) -> Row:
    command = [sys.executable, __file__, name, str(path), str(cores)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def copies(num_bytes: int) -> Iterator[bytes]:
    """Yield the sample with fresh identifiers again and again, at least ``num_bytes`` in all."""
    import lzma

    records = lzma.decompress(SAMPLE.read_bytes())[1:].split(b"\n>")
    written = turn = 0
    while written < num_bytes:
        text = b"".join(b">R%d_%b\n" % (turn, record.rstrip(b"\n")) for record in records)
        yield text
        written, turn = written + len(text), turn + 1


def make_inputs(folder: Path) -> tuple[Path, Path, int]:
    plain, packed = folder / "plain.fasta", folder / "packed.fasta.gz"
    packer = zlib.compressobj(6, wbits=31)
    num_records = 0
    with plain.open("wb") as file, packed.open("wb") as gzip:
        for text in copies(INPUT_BYTES):
            file.write(text)
            gzip.write(packer.compress(text))
            num_records += text.count(b">")
        gzip.write(packer.flush())
    return plain, packed, num_records


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain, packed, num_records = make_inputs(Path(folder))
        present = [name for name in RUNS if name not in OPTIONAL or importlib.util.find_spec(name)]
        cells = [(name, plain, cores) for name in present if name != "igzip" for cores in (1, 2)]
        cells = [cell for cell in cells if cell[2] == 1 or cell[0].startswith("ingest")]
        cells += [("igzip", packed, 1), ("ingest", packed, 1), ("ingest", packed, 2)]
        taken: dict[tuple[str, str, int], list[Row]] = {}
        for turn in range(TURNS):
            for name, path, cores in cells:
                taken.setdefault((name, path.suffix, cores), []).append(measured(name, path, cores))
                print(turn, name, path.suffix, cores, taken[name, path.suffix, cores][-1], flush=True)
        report(taken, plain.stat().st_size, packed.stat().st_size, num_records)
        write_rows("ingestion_memory", memory(plain, Path(folder)))
    extra = {"num_records": num_records, "absent": [name for name in OPTIONAL if name not in present]}
    (RESULTS / "ingestion.machine.json").write_text(json.dumps(describe() | extra, indent=2) + "\n")


def report(taken: dict[tuple[str, str, int], list[Row]], num_bytes: int, num_packed: int, num_records: int) -> None:
    """Write the tables of speeds, of claims, of stages and of what releases would take."""
    times = {key: [float(str(run["seconds"])) for run in runs] for key, runs in taken.items()}
    rows: list[Row] = [
        {
            "run": name,
            "input": "plain" if suffix == ".fasta" else "gzip",
            "cores": cores,
            "MB_of_text_per_second": round(num_bytes / statistics.median(seconds) / 1e6),
            "slowest": round(num_bytes / max(seconds) / 1e6),
            "fastest": round(num_bytes / min(seconds) / 1e6),
            "peak_MB": round(max(int(str(run["peak"])) for run in taken[name, suffix, cores]) / 1e6),
        }
        for (name, suffix, cores), seconds in times.items()
    ]
    write_rows("ingestion", rows)
    claims = ratios(times)
    write_rows("ingestion_ratios", claims)
    stages = stage_rows(taken)
    write_rows("ingestion_stages", stages)
    projected = projection(times, num_bytes, num_records)
    write_rows("ingestion_projection", projected)
    for table in (rows, claims, stages, projected):
        print(markdown(table), end="\n\n")


def ratios(times: dict[tuple[str, str, int], list[float]]) -> list[Row]:
    """Return the claims: how many times as fast ingestion is as something else in the same turns.

    Beside the ratio of each turn's times that of the fastest turns: what a host takes to supply pages only adds to a
    time, and most to that of who writes.
    """
    one, two = times["ingest", ".fasta", 1], times["ingest", ".fasta", 2]
    packed_one, packed_two = times["ingest", ".gz", 1], times["ingest", ".gz", 2]
    bare = times["igzip", ".gz", 1]
    rows: list[Row] = []

    def claim(text: str, rival: list[float], ours: list[float], target: float | None = None) -> None:
        fastest = round(min(rival) / min(ours), 2)
        rows.append(
            {
                "claim": text,
                "times_as_fast": round(ratio(rival, ours), 2),
                "in_fastest_turns": fastest,
                "target": target,
            }
        )

    claim("one core, plain, of SimpleFastaParser", times["SimpleFastaParser", ".fasta", 1], one, 1.7)
    claim("one core, plain, of Bio.SeqIO", times["Bio.SeqIO", ".fasta", 1], one, 1.7)
    claim("one core, plain, of writing alone", times["write", ".fasta", 1], one)
    claim("two cores, plain, of writing alone", times["write", ".fasta", 1], two)
    for name in OPTIONAL:
        if (name, ".fasta", 1) in times:
            claim(f"two cores, plain, of {name} on one", times[name, ".fasta", 1], two, 1.0)
    both = [inflating + plain for inflating, plain in zip(bare, one, strict=True)]
    claim("one core, gzip, of igzip and plain ingestion one after the other", both, packed_one, 0.85)
    claim("two cores, gzip, of bare igzip", bare, packed_two, 0.9)
    return rows


def stage_rows(taken: dict[tuple[str, str, int], list[Row]]) -> list[Row]:
    rows: list[Row] = []
    for (name, suffix, cores), runs in taken.items():
        stages = runs[0]["stages"]
        if isinstance(stages, dict) and stages:
            seconds = {stage: statistics.median(run["stages"][stage] for run in runs) for stage in stages}  # type: ignore[index]
            rows += [
                {"run": name, "input": suffix, "cores": cores, "stage": stage, "seconds": round(found, 3)}
                for stage, found in seconds.items()
            ]
    return rows


def memory(plain: Path, folder: Path) -> list[Row]:
    """Return the peak memory of an input and of one four times as large."""
    large = folder / "large.fasta"
    with large.open("wb") as file:
        for _ in range(4):
            with plain.open("rb") as piece:
                shutil.copyfileobj(piece, file, PIECE)
    rows: list[Row] = []
    for name in ("ingest", "ingest, duplicates counted"):
        for path in (plain, large):
            found = measured(name, path, 2)
            rows.append(
                {"run": name, "input_MB": path.stat().st_size // 10**6, "peak_MB": int(str(found["peak"])) // 10**6}
            )
    print(markdown(rows), flush=True)
    return rows


def projection(times: dict[tuple[str, str, int], list[float]], num_bytes: int, num_records: int) -> list[Row]:
    """Return minutes of releases at the speed measured here: bytes of text over bytes of text a second."""
    rows: list[Row] = []
    share = SWISS_PROT_RECORDS / num_records
    for source in (".fasta", ".gz"):
        taken = statistics.median(times["ingest", source, 2])
        speed = num_bytes / taken
        sizes = {"Swiss-Prot": share * num_bytes}
        for name, (records, residues) in RELEASES.items():
            sizes[name] = residues * (LINE + 1) / LINE + records * UNIREF_HEADER
        rows += [
            {
                "release": name,
                "input": "plain" if source == ".fasta" else "gzip",
                "GB_of_text": round(size / 1e9, 2),
                "MB_per_second": round(speed / 1e6),
                "minutes": round(size / speed / 60, 2),
            }
            for name, size in sizes.items()
        ]
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
