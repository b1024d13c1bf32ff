"""Recipes: those that are bundled fit their models, every choice survives YAML, and mistakes are named."""

import dataclasses

import pytest
import yaml
from sifa.data.augmentation import Augmentation
from sifa.models import model_card
from sifa.training.recipe import (
    DataChoice,
    LossChoice,
    ModelChoice,
    OptimizerChoice,
    Recipe,
    differences,
    list_recipes,
    make_parser,
    parse_recipe,
    read_recipe,
    write_recipe,
)
from test_cli import commands_in_documents

DATA_SETS = ("k400", "k600", "ssv1", "ssv2")


def test_the_bundled_recipes():
    published = {f"{data}-{net}" for data in DATA_SETS for net in ("resnet50", "resnet101", "swin_base")}
    assert set(list_recipes()) == published | {"motion", "motion-streaming", "own-actions"}


@pytest.mark.parametrize("name", list_recipes())
def test_a_bundled_recipe_fits_its_model(name):
    recipe = read_recipe(name)
    card = model_card(recipe.model.name)
    assert set(recipe.model.options) <= set(card.options)
    if recipe.model.pretrained == "imagenet":
        assert card.backbone is not None
    elif recipe.model.pretrained is not None:
        assert recipe.model.pretrained in card.bundled(recipe.model.streaming)
    assert recipe.batch_size % recipe.accumulate == 0
    assert recipe.output == f"runs/{name}"


@pytest.mark.parametrize(
    ("name", "rate", "warmup", "weight"),
    [("k400-resnet50", 0.04, 1, 4), ("ssv1-resnet50", 0.02, 5, 1)],
)
def test_what_was_released_stands_in_the_recipe(name, rate, warmup, weight):
    recipe = read_recipe(name)
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, True)
    assert (optimizer.learning_rate, optimizer.warmup_epochs, optimizer.warmup_start) == (rate, warmup, 0.01)
    assert (optimizer.weight_decay, optimizer.gradient_clip, optimizer.final_learning_rate) == (
        1e-4,
        40,
        1e-6,
    )
    assert (recipe.epochs, recipe.loss.weight, recipe.model.options) == (64, weight, {"dropout": 0.5})


@pytest.mark.parametrize("net", ["resnet50", "resnet101", "swin_base"])
@pytest.mark.parametrize("data", ["ssv1", "ssv2"])
def test_left_and_right_mean_something_there(data, net):
    assert read_recipe(f"{data}-{net}").augmentation.flip == 0
    assert read_recipe(f"k400-{net}").augmentation.flip == 0.5
    assert read_recipe(f"k400-{net}").optimizer.name == ("adamw" if net == "swin_base" else "sgd")


def test_options_change_a_recipe_and_yaml_keeps_them():
    changed = read_recipe(
        "motion",
        [
            "--epochs=3",
            "--optimizer.warmup_epochs=1",
            "--augmentation.scale=[0.5,1.0]",
            "--model.options={stages: [3]}",
            "--data.validation=null",
        ],
    )
    assert (changed.epochs, changed.augmentation.scale, changed.model.options) == (
        3,
        (0.5, 1.0),
        {"stages": [3]},
    )
    assert parse_recipe(write_recipe(changed)) == changed
    assert set(yaml.safe_load(write_recipe(changed))) == {field.name for field in dataclasses.fields(Recipe)}
    assert differences(read_recipe("motion"), changed)[0] == "epochs: 12, 3"
    moved = dataclasses.replace(changed, output="elsewhere", log_every=7)
    assert differences(changed, moved) == []


def test_a_file_is_a_recipe_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 2\noptimizer: {name: adamw, learning_rate: 0.5}\n")
    recipe = read_recipe(str(path), ["--optimizer.learning_rate=0.25"])
    assert (recipe.epochs, recipe.optimizer.name, recipe.optimizer.learning_rate) == (2, "adamw", 0.25)
    assert recipe.optimizer.momentum == Recipe().optimizer.momentum


def test_help_says_what_every_choice_is():
    text = " ".join(make_parser().format_help().split())
    for name, sentence in [
        ("--seed", "of initialisation, order, augmentation and dropout."),
        ("--model.pretrained", "where its weights come from"),
        ("--optimizer.gradient_clip", "the largest norm of the gradient; null: any."),
        ("--augmentation.flip", "probability of a reflection left to right"),
    ]:
        assert sentence in text[text.index(f"{name} ") :][:400]
    for part in (Recipe, ModelChoice, OptimizerChoice, LossChoice, DataChoice, Augmentation):
        assert all(f"        {field.name}: " in part.__doc__ for field in dataclasses.fields(part))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epoch=3"], "recipe motion: .*epoch"),
        (
            ["--optimizer.name=lion"],
            "recipe motion: .*'sgd', 'adamw'.*lion",
        ),
        (["--epochs=many"], "recipe motion: .*epochs"),
        (["--augmentation.flip=2"], "augmentation.flip must be a probability, 0 to 1, got 2"),
        (["--epochs=0"], r"epochs must be at least 1, got 0: give --epochs=VALUE"),
        (["--ema=1"], "ema must be null or between 0 and 1, got 1"),
        (["--optimizer.warmup_epochs=13"], "optimizer.warmup_epochs must be 0 to epochs, got 13"),
        (["--optimizer.warmup_start=-5"], "optimizer.warmup_start must be 0 to 1, got -5"),
        (
            ["--optimizer.final_learning_rate=1"],
            "optimizer.final_learning_rate must be 0 to optimizer.learning_rate, got 1",
        ),
        (["--loss.cutmix=-1"], "loss.cutmix must be at least 0, got -1"),
        (["--data.frame_stride=0"], "data.frame_stride must be null or at least 1, got 0"),
        (["--optimizer.betas=[0.9,2]"], r"optimizer.betas must be two of .* below 1, got \(0.9, 2.0\)"),
        (["--data.held_out=1"], "data.held_out must be at least 0 and below 1, got 1"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        read_recipe("motion", options)


def test_the_documents_name_recipes_and_choices_that_there_are():
    found = set()
    for where, words in commands_in_documents():
        if words[0] == "train" or words[:2] == ["data", "bench"]:
            name, *options = words[1 if words[0] == "train" else 2 :]
            flags = ("--print-config", "--help", "--json")
            if name not in flags:
                assert read_recipe(name, [o for o in options if o not in flags]).epochs >= 1, where
                found.add(name)
    assert {"own-actions", "motion", "k400-resnet50"} <= found


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xd5\x00")
    with pytest.raises(ValueError, match=r"recipe.yaml is no recipe: it is no text in UTF-8"):
        read_recipe(str(tmp_path / "recipe.yaml"), [])


def test_no_such_recipe():
    with pytest.raises(FileNotFoundError, match="no recipe k401, bundled or file; bundled: k400-resnet101, "):
        read_recipe("k401")
