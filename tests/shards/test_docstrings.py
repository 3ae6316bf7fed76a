"""docstrings: the texts of a small library whose docstrings are known, and of this Python's."""

import fractions
import inspect
import queue
import shutil
import smtplib

import pytest

from ns_data.shards.dataset import ShardDataset
from ns_data.shards.sources import convert

MODULE = '''"""{topic} in short."""

class Thing:
    """A thing of {topic}.

    The second line is not indented,
        the third one is.
    """

    def twice(self):
        """Said in two modules."""

    async def later(self):
        """{topic} only"""

    def silent(self):
        return "no docstring here"

raise RuntimeError("files are parsed, never imported")
'''


def library(folder):
    """One module of each topic: three docstrings to keep, as no two topics share them, and some to leave out."""
    for topic, name in (("concurrency", "queue"), ("files", "shutil"), ("network", "email"), ("numbers", "random")):
        path = folder / name / "deeper" / "module.py" if topic == "network" else folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MODULE.format(topic=topic) + f'\ndef f():\n    "{topic} has one more"\n')
    (folder / "turtle.py").write_text('"""A module without a topic."""\n')
    return folder


def texts_of(folder, *splits):
    sets = [ShardDataset(folder, split) for split in splits]
    return [(text, data.classes[label]) for data in sets for text, label, _ in (data[i] for i in range(len(data)))]


def test_docstrings_of_classes_functions_and_modules_go_by_topic(tmp_path):
    convert("docstrings", tmp_path / "out", {"path": library(tmp_path / "lib"), "progress": False, "test_share": 0.34})
    expected = []
    for topic in ("concurrency", "files", "network", "numbers"):
        thing = f"A thing of {topic}.\n\nThe second line is not indented,\n    the third one is."
        expected += [(f"{topic} in short.", topic), (thing, topic), (f"{topic} has one more", topic)]
    assert sorted(texts_of(tmp_path / "out", "train", "test")) == sorted(expected)
    assert sorted(topic for _, topic in texts_of(tmp_path / "out", "test")) == ["concurrency", "files", "network", "numbers"]


def test_this_python_says_what_its_modules_say_and_always_the_same(tmp_path):
    for name in ("one", "two"):
        convert("docstrings", tmp_path / name, {"progress": False})
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    train, test = texts_of(tmp_path / "one", "train"), texts_of(tmp_path / "one", "test")
    texts = dict(train + test)
    assert len(texts) == len(train) + len(test)  # no text twice, so none in both splits
    for thing, topic in (
        (fractions.Fraction.limit_denominator, "numbers"),
        (queue.Queue.task_done, "concurrency"),
        (shutil.copytree, "files"),
        (smtplib.SMTP.sendmail, "network"),
    ):
        assert texts[inspect.cleandoc(thing.__doc__)] == topic
    assert len(test) / len(texts) == pytest.approx(0.25, abs=0.01)


def test_a_folder_that_is_no_library_is_refused(tmp_path):
    (tmp_path / "queue.py").write_text('"""Only one topic is here."""')
    with pytest.raises(ValueError, match="holds no docstrings on concurrency: path must be the standard library of a Python"):
        convert("docstrings", tmp_path / "out", {"path": tmp_path})
