import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import center_crop, resize

from ns_data import PlannedBatch, cli
from ns_data.training.config import DataConfig
from ns_data.training.data import held_out, load_data


class Toy(Dataset):
    """Somebody's data set: PIL images, a random crop of its own, labels under .targets."""

    def __init__(self, split, size=6):
        self.split, self.size = split, size
        self.targets = [0, 1, 2, 1] if split == "train" else [2, 0]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        shade = 40 * index + int(torch.randint(10, ()))
        return Image.fromarray(np.full((self.size, self.size, 3), shade, np.uint8)), self.targets[index]


class Unlabelled(Toy):
    def __init__(self, split):
        super().__init__(split)
        del self.targets


def no_split(size=6):
    return Toy("train", size)


def test_a_data_set_class_is_taken_as_it_is_and_its_draws_are_planned():
    data = load_data(DataConfig(dataset=f"{__name__}:Toy", options={"size": 5}), seed=0)
    assert data.stats.counts.tolist() == [1, 2, 1]
    assert data.classes == ["0", "1", "2"]
    image, label, index = data.test[0]
    assert image.shape == (3, 5, 5)
    assert (label, index) == (2, 0)
    batch = PlannedBatch([3, 3, 1], epoch=0, number=0)
    before = torch.get_rng_state()
    first = [int(sample[0][0, 0, 0]) for sample in data.train.__getitems__(batch)]
    assert torch.equal(before, torch.get_rng_state())
    torch.randint(10, (7,))
    assert first == [int(sample[0][0, 0, 0]) for sample in data.train.__getitems__(batch)]
    many = PlannedBatch([0] * 30, epoch=0, number=0)
    assert len({int(sample[0][0, 0, 0]) for sample in data.train.__getitems__(many)}) > 3


def image_folder(root):
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for k, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count + k):
                Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")


def test_class_folders_are_read_without_conversion(tmp_path):
    image_folder(tmp_path)
    data = load_data(DataConfig(path=str(tmp_path), image_size=16, augment="crop_flip"), seed=0)
    assert data.classes == ["cat", "dog"]
    assert data.stats.counts.tolist() == [3, 4]
    assert len(data.test) == 5
    assert data.train[6][0].shape == data.test[0][0].shape == (3, 16, 16)
    (tmp_path / "train" / "cat" / "0.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    with pytest.raises(ValueError, match=r"cat/0\.jpg: not a readable"):
        data.train[0]


def test_evaluation_scales_the_shorter_side_and_cuts_the_centre_out_of_it(tmp_path):
    """As torchvision's Resize and CenterCrop; without eval_resize the centre is as large as the shorter side."""
    image_folder(tmp_path)
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "val" / "cat" / "0.jpg"))).permute(2, 0, 1)
    for eval_resize in (16, 12, None):
        options = {"image_size": 12, "eval_resize": eval_resize}
        data = load_data(DataConfig(path=str(tmp_path), augment="resized_crop_flip", **options), seed=0)
        expected = center_crop(resize(pixels, [eval_resize or 12], antialias=True), [12, 12])
        assert (data.test[0][0].int() - expected.int()).abs().max() <= 1
        assert data.train[0][0].shape == (3, 12, 12)
    with pytest.raises(ValueError, match="resize 12 is smaller than the size 14"):
        load_data(DataConfig(path=str(tmp_path), image_size=14, eval_resize=12), seed=0)
    with pytest.raises(ValueError, match=r"eval_resize=16 needs data\.image_size"):
        load_data(DataConfig(path=str(tmp_path), eval_resize=16), seed=0)


def test_digits_are_prepared_on_first_use(tmp_path):
    config = DataConfig(options={"imbalance": 50}, root=str(tmp_path))
    data = load_data(config, seed=0)
    assert data.stats.counts.tolist() == [150, 97, 62, 40, 26, 17, 11, 7, 4, 3]
    assert len(data.test) == 297
    made = (tmp_path / "digits-imbalance=50" / "train-000000.tar").stat().st_mtime_ns
    load_data(config, seed=0)
    assert (tmp_path / "digits-imbalance=50" / "train-000000.tar").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "nowhere.at:All"}, "cannot be imported"),
        ({"dataset": f"{__name__}:Nothing"}, "cannot be imported"),
        ({"dataset": f"{__name__}:no_split"}, "must take split="),
        ({"dataset": f"{__name__}:Unlabelled"}, "neither .labels nor .targets"),
        ({"dataset": f"{__name__}:Toy", "augment": "crop_flip"}, "have no effect on data.dataset"),
        (
            {"path": "/nowhere"},
            r"/nowhere is not a folder: .*`ns-data shards SOURCE \.\.\. out=/nowhere` writes .* or train/",
        ),
        ({"source": None}, "set data.source, data.path or data.dataset"),
        ({"source": "digit"}, "did you mean 'digits'"),
        ({"options": {"imbalanse": 5}}, "did you mean 'imbalance'"),
        ({"options": {"imbalance": 500}}, "between 1 and 150, got 500"),
        ({"augment": "crop_flip"}, "needs data.image_size"),
        ({"augment": "crop", "image_size": 8}, "did you mean 'crop_flip'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        load_data(DataConfig(root=str(tmp_path), **settings), seed=0)
    assert "\n" not in str(error.value)


def test_folders_without_data_say_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="neither shards nor a folder train/: it should hold shards, which `ns-data"):
        load_data(DataConfig(path=str(tmp_path)), seed=0)
    digits = tmp_path / "digits"
    load_data(DataConfig(root=str(tmp_path)), seed=0)
    for name in ("dataset.json", "index.npy"):
        (digits / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="have no index: make one with `ns-data index") as error:
        load_data(DataConfig(path=str(digits)), seed=0)
    cli.main(str(error.value).split("`")[1].split()[1:])  # the command that the sentence names helps
    assert len(load_data(DataConfig(path=str(digits)), seed=0).train) == 1500


def test_a_part_of_each_training_class_can_be_held_out_to_tune_on(tmp_path):
    whole = load_data(DataConfig(options={"imbalance": 50}, root=str(tmp_path), image_size=8), seed=0)
    config = DataConfig(options={"imbalance": 50}, root=str(tmp_path), image_size=8, augment="crop_flip", holdout=0.2)
    part = load_data(config, seed=0)
    # 20 % of 150 97 62 40 26 17 11 7 4 3, and at least one
    held = [30, 19, 12, 8, 5, 3, 2, 1, 1, 1]
    assert np.bincount(part.test.labels).tolist() == held
    assert part.stats.counts.tolist() == (whole.stats.counts - held).tolist()
    images = {bytes(whole.train[i][0].numpy()): int(whole.train.labels[i]) for i in range(len(whole.train))}
    seen = {bytes(part.test[i][0].numpy()): int(part.test.labels[i]) for i in range(len(part.test))}
    assert seen.items() <= images.items()  # of the training set, with their labels and without augmentation
    train_images = {bytes(part.train.read(i).numpy()) for i in range(len(part.train))}
    assert not train_images & {bytes(part.test.read(i).numpy()) for i in range(len(part.test))}
    again, other = load_data(config, seed=0), load_data(config, seed=1)
    assert [bytes(part.test.read(i).numpy()) for i in range(5)] == [bytes(again.test.read(i).numpy()) for i in range(5)]
    assert [bytes(part.test.read(i).numpy()) for i in range(5)] != [bytes(other.test.read(i).numpy()) for i in range(5)]


def test_held_out_keeps_the_only_sample_of_a_class_and_refuses_shares_outside_of_0_to_1():
    assert held_out(np.array([0, 0, 0, 1]), 0.9, seed=0).tolist().count(True) == 2
    assert not held_out(np.array([0, 0, 0, 1]), 0.9, seed=0)[3]
    with pytest.raises(ValueError, match=r"at least 0 and below 1, got 1\.5"):
        held_out(np.array([0, 1]), 1.5, seed=0)
