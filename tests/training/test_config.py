import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ns_data.training.config import Config, help_text, load_config, setting, to_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="some.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_layers_override_each_other(config_file):
    config_file("epochs: 5\nbatch_size: 32\ndata: {options: {imbalance: 50}}\n", "first.yaml")
    path = config_file("base: first.yaml\nbatch_size: 16\ndata: {options: {noise: 0.2}}\n")
    config = load_config(path, ["ns.rho=0.5", "data.options.imbalance=null"])
    assert (config.epochs, config.batch_size, config.ns.rho, config.seed) == (5, 16, 0.5, Config().seed)
    assert config.data.options == {"noise": 0.2}


def test_the_run_is_named_after_the_config_and_what_changes_its_result(config_file):
    config = load_config(config_file("epochs: 5\n"), ["epochs=3", "fresh=true", "device=cpu", "data.workers=2", "plots=false"])
    assert config.run_dir == "runs/some-epochs=3"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("epcohs: 3", [], "some.yaml: unknown setting 'epcohs': did you mean 'epochs'"),
        ("ns: {sigmma: 3}", [], "'ns.sigmma': did you mean 'ns.sigma'"),
        ("", ["ns.sigmma=3"], "ns.sigmma=3: .* did you mean 'ns.sigma'"),
        ("", ["epochs=three"], "epochs=three: setting epochs: Value 'three'"),
        ("", ["epochs"], "'epochs' is not of the form key=value"),
        ("", ["ns=3"], "ns holds settings such as weighting, got 3"),
        ("- 1\n- 2", [], "not a mapping"),
        ("epochs: [", [], "not valid YAML"),
        ("seed: !!python/object/apply:os.system ['touch hacked']", [], "not valid YAML"),
        ("base: some.yaml", [], "its own base"),
        ("model: {options: {num_classes: 5}}", [], "model.options.num_classes is given by the data's classes: leave it out"),
        ("base: nowhere.yaml", [], "no config file .*nowhere.yaml"),
    ],
)
def test_mistakes_are_one_sentence(config_file, text, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        load_config(config_file(text), overrides)
    assert "\n" not in str(error.value)
    assert not Path("hacked").exists()


def test_parts_of_the_network_are_named_in_a_file_or_a_word_and_taken_away_by_null(config_file):
    config = load_config(config_file("optimizer: {groups: {head: 10, layer4.1: 0}}"), ["optimizer.groups.head=null"])
    assert config.optimizer.groups == {"layer4.1": 0}
    assert load_config(config_file(""), ["optimizer.groups={layer4.1: 0.5}"]).optimizer.groups == {"layer4.1": 0.5}


def test_a_printed_config_is_itself_a_config(config_file):
    config = load_config(config_file("epochs: 5\nns: {layout: 1x4}\n"), ["data.options.imbalance=20"])
    again = load_config(config_file(to_yaml(config), "printed.yaml"))
    assert again == config


def test_help_names_every_setting():
    text = help_text()
    for key in ("epochs=40", "ns.sigma=1.5", "data.source=digits", "device=null", "ns.normalize=false"):
        assert re.search(rf"^  {re.escape(key)} +\w", text, re.MULTILINE)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_open_with_their_command(path):
    load_config(path)
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ")
    assert "python train.py" in path.read_text()


def test_another_task_has_settings_of_its_own(config_file):
    @dataclass
    class Inner:
        options: dict[str, Any] = field(default_factory=dict, metadata={"help": "anything"})

    @dataclass
    class Task:
        base: str | None = setting(None, "another config")
        name: str | None = setting(None, "of the run")
        run_dir: str | None = setting(None, "run folder")
        depth: int = setting(3, "a setting that train.py does not have")
        inner: Inner = field(default_factory=Inner, metadata={"help": ""})

    config_file("depth: 5\ninner: {options: {a: 1, b: 2}}\n", "first.yaml")
    path = config_file("base: first.yaml\n", "task.yaml")
    config = load_config(path, ["inner.options.a=null"], schema=Task)
    assert config == Task(
        name="task-inner.options.a=null", run_dir="runs/task-inner.options.a=null", depth=5, inner=Inner({"b": 2})
    )
    with pytest.raises(ValueError, match="unknown setting 'depht': did you mean 'depth'"):
        load_config(path, ["depht=3"], schema=Task)
    with pytest.raises(ValueError, match="unknown setting 'epochs'"):
        load_config(path, ["epochs=3"], schema=Task)
    assert "depth=3" in help_text(Task)
