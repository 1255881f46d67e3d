"""Prepared folders: the same bytes however they were made, and one sentence for every damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale import UserError
from loopscale.cli import main
from loopscale.data import Preparation, load_data, prepare, prepare_data, verify
from loopscale.data.dataset import shuffled
from loopscale.data.prepared import BLOCK, Shard, shard_file
from loopscale.data.tokenizer import ByteTokenizer
from loopscale.records import Manifest, Preparing, write_record

ASKED = Preparation(shard_tokens=20_000, validation_fraction=0.2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.Generator(np.random.PCG64(0))
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(300):
            file.write(json.dumps({"text": " ".join(map(str, rng.integers(0, 10**6, rng.integers(1, 120))))}) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "whole"
    prepare_data(str(source), folder, ASKED, workers=1)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_the_number_of_workers_changes_no_byte(source, whole, tmp_path):
    prepare_data(str(source), tmp_path / "four", ASKED, workers=4)
    assert contents(tmp_path / "four") == contents(whole)
    assert len(list(whole.glob("train-*"))) > 3


def test_the_tokens_are_those_of_the_documents(source, whole):
    texts = [json.loads(line)["text"] for line in (source / "rows.jsonl").read_text().splitlines()]
    parts = {"train": b"", "validation": b""}
    for side in parts:
        for path in sorted(whole.glob(f"{side}-*")):
            shard = Shard(path)
            parts[side] += shard.take(np.arange(len(shard))).astype(np.uint8).tobytes()
    assert sorted(b"".join(parts.values()).split(b"\0")[:-1]) == sorted(text.encode() for text in texts)
    assert 0.1 < len(parts["validation"]) / len(parts["train"]) < 0.5


def prepare_slowly(source: str, out: str) -> None:
    """In a process of its own, to be killed: a little slower, so that the kill hits different places."""
    prepare.WORK = 2000
    prepare_data(source, Path(out), ASKED, workers=2, report=lambda *_: time.sleep(0.01))


def test_killed_again_and_again_the_result_is_the_same(source, whole, tmp_path):
    out, context, kills = tmp_path / "out", multiprocessing.get_context("fork"), 0
    rng = np.random.Generator(np.random.PCG64(1))
    while kills < 6:
        process = context.Process(target=prepare_slowly, args=(str(source), str(out)))
        process.start()
        time.sleep(float(rng.uniform(0.01, 0.08)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    prepare_data(str(source), out, ASKED)
    assert contents(out) == contents(whole)  # nothing of the killed ones is left


def test_killed_after_its_first_file_it_goes_on(source, whole, tmp_path, monkeypatch):
    def killed(path, text):
        path.write_text(text)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(prepare, "write_text", killed)
    process = multiprocessing.get_context("fork").Process(
        target=prepare_data, args=(str(source), tmp_path / "out", ASKED)
    )
    process.start()
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    prepare_data(str(source), tmp_path / "out", ASKED)
    assert contents(tmp_path / "out") == contents(whole)


def test_finished_shards_are_not_made_again(source, whole, tmp_path, monkeypatch):
    from loopscale.data import prepare as module

    out, made = tmp_path / "out", []

    @contextmanager
    def counting(path, *rest):
        with shard_file(path, *rest) as add:
            yield add
            made.append(path.name)
            if len(made) == 3:
                raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "shard_file", counting)
    with pytest.raises(UserError, match=r"^the disk is full while writing .*\.safetensors: free some space"):
        prepare_data(str(source), out, ASKED)
    assert sorted(file.name for file in out.iterdir() if not file.suffix == ".json") == sorted([*made[:2], ".lock"])
    made[:] = ["again"] * 4
    prepare_data(str(source), out, ASKED)
    assert len(made) - 4 == len(list(whole.glob("*-0*"))) - 2
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("hurt", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
@pytest.mark.parametrize("whole_again", [True, False])
def test_a_folder_with_a_damaged_shard_is_not_called_done(source, folder, hurt, whole_again):
    """Neither one that was finished, nor one that goes on behind the damage."""
    if not whole_again:
        manifest = json.loads((folder / "manifest.json").read_text())
        row = manifest["shards"]["train"][0]
        (folder / "manifest.json").unlink()
        state = {"identity": manifest["asked"], "done": {"train": 1}, "shards": {"train": [row]}}
        write_record(folder / "progress.json", Preparing.model_validate(state))
    hurt(folder / "train-00000.safetensors")
    with pytest.raises(UserError, match=r"train-00000\.safetensors.*: restore it, or prepare the data again"):
        prepare_data(str(source), folder, ASKED)


def test_a_manifest_that_counts_other_tokens_is_a_sentence(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"]["train"][0]["tokens"] += 1
    known = {key: value for key, value in manifest.items() if key not in ("schema", "seal")}
    write_record(folder / "manifest.json", Manifest.model_validate(known))
    with pytest.raises(UserError, match=r"tokens, the manifest says \d+: restore it"):
        load_data(folder, context=32)


def test_other_settings_need_another_folder(source, folder, tmp_path):
    with pytest.raises(UserError, match="was prepared with another shard_tokens: name another folder with --out"):
        prepare_data(str(source), folder, Preparation(shard_tokens=10, validation_fraction=0.2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(UserError, match="already exists and is no empty folder"):
        prepare_data(str(source), tmp_path / "mine", ASKED)


def test_a_batch_of_shards_is_that_of_one_array(whole):
    data = load_data(whole, context=32)
    side = data._sides["train"]
    text = side[np.arange(len(side))]
    inputs, targets = data.batch(3, 0, 64, 32)
    joined = text.astype(np.uint8).tobytes()
    assert all(row.astype(np.uint8).tobytes() in joined for row in np.c_[inputs, targets[:, -1]])
    assert np.array_equal(data.batch(3, 0, 64, 32, rows=slice(16, 32))[0], inputs[16:32])


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_an_epoch_shows_every_window_once(whole, rows):
    data, context = load_data(whole, context=32), 300
    count = (data.tokens("train") - 1) // context
    seen = []
    for step in range(2 * count // rows + 2):
        inputs, _ = data.batch(step, 5, rows, context, order="epochs")
        seen += [row.tobytes() for row in inputs]
    side = data._sides["train"]
    windows = sorted(side[np.arange(k * context, (k + 1) * context)].tobytes() for k in range(count))
    assert sorted(seen[:count]) == windows and sorted(seen[count : 2 * count]) == windows
    assert seen[:count] != seen[count : 2 * count]


@given(size=st.integers(1, 300), seed=st.integers(0, 2**31), first=st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_the_shuffle_is_a_permutation(size, seed, first):
    epoch = first // size * size
    assert sorted(shuffled(epoch, size, size, seed)) == list(range(size))
    assert shuffled(first, 5, size, seed).tolist() == [int(shuffled(first + k, 1, size, seed)[0]) for k in range(5)]


def test_the_shuffle_leaves_no_order(whole):
    places = shuffled(0, 2000, 2000, 0)
    assert abs(np.corrcoef(places, np.arange(2000))[0, 1]) < 0.1
    assert abs(np.corrcoef(places, shuffled(2000, 2000, 2000, 0))[0, 1]) < 0.1
    assert abs(np.corrcoef(places, shuffled(0, 2000, 2000, 1))[0, 1]) < 0.1


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        data = load_data(folder, context=32)
        for step in range(200):
            data.batch(step, 0, 64, 32)
    assert "\n" not in str(caught.value)


def test_a_truncated_shard(folder):
    path = folder / "train-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, r"train-00001\.safetensors is truncated \(\d+ of \d+ bytes\): restore it")
    path.write_bytes(b"")
    refused(folder, r"train-00001\.safetensors is no shard of tokens, or its beginning is damaged")
    path.unlink()
    refused(folder, r"cannot read the shard .*train-00001\.safetensors \(No such file")


def test_a_shard_with_fewer_tokens_than_the_manifest_says(folder):
    shutil.copy(folder / "validation-00000.safetensors", folder / "train-00000.safetensors")
    refused(folder, r"train-00000\.safetensors has \d+ tokens, the manifest says \d+: restore it")


@pytest.mark.parametrize("at", [1024, 20_000, 30_000])
def test_a_flipped_byte_is_noticed_when_it_is_read(folder, at):
    flip(folder / "train-00001.safetensors", at)
    refused(folder, r"train-00001\.safetensors is damaged \(checksum of its tokens 0 to \d+\): restore it, or prepare")
    with pytest.raises(UserError, match="is damaged"):
        verify(folder)


def test_only_the_damaged_block_is_refused(tmp_path):
    with shard_file(tmp_path / "s", np.dtype("<u2"), "t") as add:
        add(np.arange(BLOCK))
    flip(tmp_path / "s", 1024 + BLOCK + 5)
    shard = Shard(tmp_path / "s")
    assert shard.take(np.array([0, 9])).tolist() == [0, 9]
    with pytest.raises(UserError, match=f"tokens {BLOCK // 2} to {BLOCK - 1}"):
        shard.take(np.array([BLOCK // 2]))


def test_a_shard_of_another_tokenizer(source, folder, tmp_path):
    prepare_data(str(source), tmp_path / "bpe", Preparation(tokenizer="bpe", vocab_size=300, shard_tokens=20_000))
    shutil.copy(tmp_path / "bpe/train-00001.safetensors", folder / "train-00001.safetensors")
    refused(folder, r"train-00001\.safetensors was made with another tokenizer \(\w+, not \w+\): take it out")
    with pytest.raises(UserError, match=r"data\.tokenizer = 'bytes', but .* was prepared with 'bpe': set"):
        load_data(tmp_path / "bpe")
    words = tmp_path / "bpe/tokenizer.json"
    prepare_data(str(source), tmp_path / "same", Preparation(tokenizer_from=str(words), shard_tokens=20_000))
    assert (tmp_path / "same/train-00000.safetensors").read_bytes()[:2000] == (
        tmp_path / "bpe/train-00000.safetensors"
    ).read_bytes()[:2000]
    words.write_text(words.read_text() + " ")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the one that the manifest names"):
        load_data(tmp_path / "bpe", tokenizer="bpe")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": 9}', '{"schema": 1}'])
def test_a_damaged_manifest(folder, content):
    (folder / "manifest.json").write_text(content)
    refused(folder, r"manifest\.json (is damaged|has schema).*: (restore it|upgrade)")


def test_an_unfinished_folder_is_not_trained_on(folder):
    (folder / "manifest.json").rename(folder / "progress.json")
    refused(folder, "is not finished: run the same loopscale data prepare again")


def test_a_preparation_is_a_reading_with_its_limits(source, tmp_path):
    for wrong, said in (({"shard_tokens": 0}, "at least 1"), ({"validation_fraction": 2.0}, "between 0 and 1")):
        with pytest.raises(UserError, match=said):
            Preparation(**wrong)
    shards = prepare_data(str(source), tmp_path / "few", Preparation(max_tokens=5000, validation_fraction=0.2)).shards
    assert 4000 < sum(row.tokens for row in (*shards.train, *shards.validation)) <= 5000


def test_the_command(source, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["data", "prepare", str(source), "--out", str(out), "--shard-tokens", "20000", "--json"]
    assert main(command) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["tokenizer"] == "bytes" and main(["data", "verify", str(out)]) == 0
    assert main([*command[:-3], "--validation-fraction", "2"]) == 2
    assert "'--validation-fraction': 2.0 is not between 0 and 1" in capsys.readouterr().err
    assert main(["data", "prepare", str(tmp_path / "no"), "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def leaf_paths(value, path=()):
    """The places of all values in nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, part in inner for place in leaf_paths(part, (*path, key))]


@pytest.mark.parametrize("other", [None, "x", -1, [], {}, 1e300, True])
def test_every_field_of_the_manifest_is_typed_and_sealed(folder, other):
    manifest = json.loads((folder / "manifest.json").read_text())
    for place in leaf_paths(manifest)[:40]:
        damaged = json.loads(json.dumps(manifest))
        inside = damaged
        for key in place[:-1]:
            inside = inside[key]
        if inside[place[-1]] == other:
            continue
        inside[place[-1]] = other
        (folder / "manifest.json").write_text(json.dumps(damaged))
        refused(folder, r"manifest\.json")


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "/etc/passwd", "train-00000.safetensors/..", "other.safetensors"]
)
def test_no_name_leads_out_of_the_folder(folder, name):
    from loopscale.records.record import content_hash

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"]["train"][0]["file"] = name
    body = {key: value for key, value in manifest.items() if key != "seal"}
    (folder / "manifest.json").write_text(json.dumps({**body, "seal": content_hash(body)}))
    refused(folder, r"manifest\.json is damaged at shards\.train\.0\.file")


def test_every_byte_of_a_shards_header_counts(folder):
    """A flip in the header is noticed, or changes nothing that is read."""
    shard = folder / "train-00000.safetensors"
    content = bytearray(shard.read_bytes())
    tokens = Shard(shard).take(np.arange(500))
    header = content[8:1024].rstrip()
    for at in range(len(header) + 8):
        damaged = content.copy()
        damaged[at] ^= 4
        shard.write_bytes(damaged)
        try:
            read = load_data(folder)._sides["train"]._shards[0].take(np.arange(500))
        except UserError:
            continue
        assert np.array_equal(read, tokens), at


def test_a_second_process_is_kept_out_and_a_refused_source_leaves_nothing(source, tmp_path):
    from loopscale.files import alone

    out = tmp_path / "out"
    out.mkdir()
    with (
        alone(out / ".lock", "x"),
        pytest.raises(UserError, match=r"another process prepares .* \(process \d+.*\): wait"),
    ):
        prepare_data(str(source), out, ASKED)
    (tmp_path / "none.json").write_text("{}")
    none = str(tmp_path / "none.json")
    for asked, said in ((Preparation(tokenizer_from=none), re.escape(none)), (Preparation(text_field="txt"), "txt")):
        with pytest.raises(UserError, match=said):
            prepare_data(str(source), tmp_path / "a/b", asked)
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("left", [("progress.json", ".lock"), (".lock",), (".lock", ".manifest.json.0a1b2c3d")])
def test_what_a_kill_after_the_manifest_left_is_removed_by_the_next(source, whole, folder, left):
    for name in left:
        (folder / name).write_text("")
    prepare_data(str(source), folder, ASKED)
    assert contents(folder) == contents(whole)


def test_long_documents_are_cut_where_no_token_reaches_over():
    from loopscale.data import tokenizer as module

    text = "The loop's visit  costs 12 ms\n\tand   more; it 's here\n" * 3
    bpe = module.BPETokenizer.train([text * 5], 400)
    whole = bpe._model.encode(text * 40, add_special_tokens=False).ids
    for size in (5, 17, 100, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PIECE", size)
            patch.setattr(module, "AT_ONCE", 50)
            assert bpe.encode(text * 40).tolist() == whole
            assert bpe.encode_batch(["", "a b", text * 40])[2].tolist() == whole
            assert module.BPETokenizer.train([text * 5], 400).to_json() == bpe.to_json()


def test_tokens_are_made_in_the_size_that_a_shard_keeps_them(tmp_path, monkeypatch):
    """Eight bytes for each of a document of one huge line would be four times its shard."""
    asked = []
    encode = ByteTokenizer.encode_batch
    monkeypatch.setattr(
        ByteTokenizer, "encode_batch", lambda self, texts, kind: asked.append(kind) or encode(self, texts, kind)
    )
    (tmp_path / "a.txt").write_text("a line " * 100)
    prepare_data(str(tmp_path / "a.txt"), tmp_path / "out", Preparation())
    assert set(asked) == {np.dtype("<u2")}


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab' \n\t.9\u00e9\u2003\u4e2d"), max_size=80))
def test_no_cut_changes_a_token(text):
    from loopscale.data import tokenizer as module

    bpe = module.BPETokenizer.train(["ab ba 'a 'ab\n\nb a9 9b .a . b"] * 5, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 1)
        assert bpe.encode(text).tolist() == bpe._model.encode(text, add_special_tokens=False).ids
