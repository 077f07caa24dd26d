"""Recordings: what is kept, and how it is played on another clock."""

import json
import lzma
import zlib
from pathlib import Path

import pytest

from exporter.sources.recording import Loop, Playback, Record, RecordingError, Writer, read

BUNDLED = Path(__file__).parent.parent / "fixtures/recordings/vllm-0.32.0.jsonl.xz"
BEGAN = 5_000_000.0


def page(tokens: float, start: float = 990.0) -> str:
    return (
        f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {start}\n"
        f"# TYPE tokens counter\ntokens_total {tokens}\ntokens_created {start + 1}\n"
        f'# TYPE ttft histogram\nttft_bucket{{le="+Inf"}} {tokens}\nttft_sum {tokens}\nttft_count {tokens}\n'
        f"# TYPE running gauge\nrunning {tokens}\n"
    )


def kept(at: float, body: str) -> Record:
    return Record(at, 200, "text/plain", zlib.compress(body.encode()))


def value(text: str, name: str) -> float:
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


ONE_LIFE = (
    Record(1000.0, error="refused: gone"),
    kept(1005.0, page(10)),
    kept(1010.0, page(40)),
    kept(1015.0, page(70)),
)
TWO_LIVES = (*ONE_LIFE, Record(1020.0, error="refused: gone"), kept(1025.0, page(3, start=1021.0)))


def played(playback: Playback, seconds: float) -> str | None:
    cue = playback.cue(BEGAN + seconds)
    return None if cue is None or cue.record.error else playback.page(cue)


def test_what_was_written_is_read_back(tmp_path: Path):
    path = tmp_path / "x.jsonl.xz"
    with Writer(path) as writer:
        for record in TWO_LIVES * 40:
            writer.write(record)
    found = read(path)
    assert len(found) == 240
    assert {record.body for record in found} == {record.body for record in TWO_LIVES}
    assert [record.at for record in found] == sorted(record.at for record in found)


def test_a_file_that_was_cut_off_gives_what_was_whole(tmp_path: Path):
    path = tmp_path / "x.jsonl.xz"
    with Writer(path) as writer:
        for number in range(150):
            writer.write(kept(1000.0 + number, page(number)))
    path.write_bytes(path.read_bytes()[:-40])
    assert 120 <= len(read(path)) < 150


def test_an_existing_file_is_not_written_over(tmp_path: Path):
    path = tmp_path / "x.jsonl.xz"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        Writer(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not xz at all", "expected a recording, found: not a file in xz format"),
        (lzma.compress(b"[1]\n"), "line 1: expected a JSON object"),
        (
            lzma.compress(b'{"at": 1, "status": 200, "type": "t", "body": "b"}\n{"at": 1}\n'),
            "line 2: expected a JSON object",
        ),
        (
            lzma.compress(b'{"at": 1, "status": 200, "type": "a\\r\\nb", "body": "b"}\n'),
            "line 1: expected a JSON object",
        ),
        (lzma.compress(b'{"at": 1, "status": 7, "type": "t", "body": "b"}\n'), "line 1: expected a JSON object"),
        (lzma.compress(b'{"at": 1e20, "error": "refused"}\n'), "line 1: expected a JSON object"),
        (lzma.compress(b'{"at": 1, "status": Infinity, "type": "t", "body": "b"}\n'), "line 1: expected a JSON object"),
        (lzma.compress(b'{"at": 1, "status": 100, "type": "t", "body": "b"}\n'), "line 1: expected a JSON object"),
        (lzma.compress(b"[" * 100_000), "line 1: expected a JSON object"),
        (lzma.compress(b'{"at": NaN, "error": "refused"}\n'), "line 1: expected a JSON object"),
        (lzma.compress(b'{"at": 1, "error": "refused"}\n'), "expected at least one page, found none"),
        (lzma.compress(b""), "expected at least one page, found none"),
        (b"", "expected at least one page, found none"),
    ],
)
def test_what_is_no_recording_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(content)
    with pytest.raises(RecordingError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecordingError, match="No such file"):
        read(tmp_path / "none")


def test_times_on_a_page_move_to_the_clock_of_the_replay():
    text = played(Playback(ONE_LIFE, loop=Loop.OFF, began=BEGAN), 6.0)
    assert text is not None
    assert value(text, "process_start_time_seconds") == BEGAN - 10
    assert value(text, "tokens_created") == BEGAN - 9
    assert value(text, "tokens_total") == 10


def test_skip_and_speed():
    playback = Playback(ONE_LIFE, loop=Loop.OFF, began=BEGAN, speed=5.0, skip=5.0)
    assert value(played(playback, 0.0) or "", "tokens_total") == 10
    assert value(played(playback, 1.1) or "", "tokens_total") == 40
    assert value(played(playback, 1.1) or "", "process_start_time_seconds") == BEGAN - 3
    assert playback.cue(BEGAN + 3.1) is None


def test_a_restarting_loop_is_a_restart_of_the_engine():
    playback = Playback(ONE_LIFE, loop=Loop.RESTART, began=BEGAN)
    assert played(playback, 21.0) is None  # the second pass begins where nothing answered
    text = played(playback, 26.0) or ""
    assert (value(text, "tokens_total"), value(text, "process_start_time_seconds")) == (10, BEGAN + 20 - 10)


def test_a_continuing_loop_goes_on_counting_in_the_same_process():
    playback = Playback(ONE_LIFE, loop=Loop.CONTINUE, began=BEGAN)
    found = [played(playback, seconds) or "" for seconds in (16, 21, 26, 31, 36, 41)]
    assert [value(text, "tokens_total") for text in found] == [70, 70, 100, 130, 130, 160]
    assert [value(text, "ttft_sum") for text in found] == [70, 70, 100, 130, 130, 160]
    assert [value(text, "running") for text in found] == [70, 10, 40, 70, 10, 40]
    assert {value(text, "process_start_time_seconds") for text in found} == {BEGAN - 10}


def test_a_continuing_loop_over_two_lives_restarts_only_where_the_recording_does():
    playback = Playback(TWO_LIVES, loop=Loop.CONTINUE, began=BEGAN)
    found = [played(playback, second) or "" for second in (16, 26, 31, 36, 41, 51, 56)]
    assert [value(text, "tokens_total") for text in found] == [70, 3, 3, 33, 63, 3, 3]
    starts = [value(text, "process_start_time_seconds") - BEGAN for text in found]
    assert starts == [-10, 21, 21, 21, 21, 46, 46]
    assert played(playback, 46) is None


def test_odd_lines_of_a_page_are_served_as_they_stand():
    odd = (
        'process_start_time_seconds abc\nx_created abc\n# TYPE c counter\nc_total 5 # {t="x"} 1 496.0\n\n{ 1\nc_total\n'
    )
    records = (kept(1000.0, odd), kept(1000.0, odd))
    playback = Playback(records, loop=Loop.CONTINUE, began=BEGAN)
    assert played(playback, 0.0) == odd
    assert played(playback, 12.0) == odd


def test_a_counter_with_an_exemplar_goes_on():
    line = '# TYPE c counter\nc_total{{a="b }} 1"}} {} # {{t="x"}} 1 496.0\n'
    records = (kept(1000.0, line.format(5)), kept(1005.0, line.format(9)))
    playback = Playback(records, loop=Loop.CONTINUE, began=BEGAN)
    assert played(playback, 11.0) == line.format(9.0)
    assert played(playback, 16.0) == line.format(13.0)


def test_the_bundled_recording_is_whole():
    records = read(BUNDLED)
    assert len(records) == 103
    assert sum(record.error is not None for record in records) == 13
    billed = json.loads((BUNDLED.parent / "vllm-0.32.0.billed.json").read_text())
    assert sum(phase["outcome"]["ok"] for phase in billed) == 470 + 670 + 128 + 465
