"""Weights from image networks, folders and the hub: what goes where, and what is said of the rest."""

import json
import logging
import shutil

import pytest
import sifa
import timm
import torch
from safetensors.torch import save_file
from sifa.models import load_imagenet

SMALL = {"num_classes": 5, "num_frames": 8, "input_size": 64}


def image_network(name):
    """A network of timm's, whose parameters are all different from what a new one has."""
    torch.manual_seed(1)
    network = timm.create_model(name, pretrained=False, num_classes=7).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network


def still_clip(image, num_frames=8):
    """The image in every third frame of four, where the image network's kernel is; noise in the others."""
    clip = torch.randn(1, 3, num_frames, *image.shape[-2:])
    clip[:, :, 2::4] = image.unsqueeze(2)
    return clip


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_resnet_starts_as_the_image_network(tmp_path, suffix):
    """Without SIFA and context the features of every step are those of the image in its third frame."""
    network, path = image_network("resnet18"), tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    options = {**SMALL, "temporal": None, "global_context": None}
    model = sifa.create_model("sifa_resnet18", pretrained=f"imagenet:{path}", **options).eval()
    assert model.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(image), pre_logits=True)
        steps = model.layer4(model.backbone(sifa.models.classifier.stack_frames(still_clip(image), 4)))
        torch.testing.assert_close(steps.mean((2, 3)), expected.expand(2, -1), rtol=1e-4, atol=1e-5)
    for (name, first), second in zip(
        model.layer4.named_parameters(), model.layer4_dual.parameters(), strict=True
    ):
        assert torch.equal(first, second), name


def test_swin_and_edge_models_start_as_the_image_network(tmp_path):
    for name, backbone in (
        ("sifa_swin_tiny", "swin_tiny_patch4_window7_224"),
        ("sifa_mobilenetv4_small", "mobilenetv4_conv_small"),
    ):
        network, path = image_network(backbone), tmp_path / f"{backbone}.safetensors"
        save_file(network.state_dict(), path)
        model = sifa.create_model(
            name, num_classes=5, num_frames=8, temporal=None, pretrained=f"imagenet:{path}"
        ).eval()
        image = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            expected = network.forward_head(network.forward_features(image), pre_logits=True)
            steps = model.backbone(sifa.models.classifier.stack_frames(still_clip(image), 4))
        torch.testing.assert_close(steps, expected.expand(2, -1), rtol=1e-3, atol=1e-5)


def test_what_matched_is_new_or_was_not_used_is_reported(caplog):
    model = sifa.create_model("sifa_resnet18", **SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="sifa"):
        report = load_imagenet(model, image_network("resnet18").state_dict())
    assert "backbone.layer2.1.conv2.module.weight" in report.matched
    assert "layer4_dual.0.bn2.module.running_var" in report.matched
    assert report.unused == ["fc.weight", "fc.bias"]
    assert "backbone.layer2.1.conv2.inserted.conv_offset.weight" in report.new
    assert {"head.weight", "head_dual.bias", "layer4.0.bn2.inserted.fc1.weight"} <= set(report.new)
    assert sorted(report.matched + report.new) == sorted(before)
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in report.new)
    assert not after["backbone.layer2.1.conv2.inserted.conv_offset.weight"].any()
    assert "unused (fc.weight, fc.bias)" in caplog.text


def test_a_tag_asks_timm_and_brings_its_normalisation(monkeypatch):
    asked = []
    network = image_network("resnet18")
    network.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    create = timm.create_model

    def download(name, pretrained=False, **options):
        if not pretrained:
            return create(name, pretrained=False, **options)
        asked.append(name)
        return network

    monkeypatch.setattr(timm, "create_model", download)
    model = sifa.create_model("sifa_resnet18", pretrained="imagenet:a1_in1k", **SMALL)
    sifa.create_model("sifa_resnet18", pretrained="imagenet", **SMALL)
    assert asked == ["resnet18.a1_in1k", "resnet18"]
    assert (model.mean, model.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert torch.equal(model.layer4[0].conv1.weight, network.layer4[0].conv1.weight)


def test_swin_of_another_size_starts_as_the_image_network(tmp_path):
    """Its last windows are smaller than 7x7, and their tables of relative positions with them."""
    path = tmp_path / "swin.safetensors"
    save_file(image_network("swin_tiny_patch4_window7_224").state_dict(), path)
    model = sifa.create_model("sifa_swin_tiny", pretrained=f"imagenet:{path}", **SMALL)
    tables = [p for name, p in model.named_parameters() if "relative_position_bias_table" in name]
    assert {table.shape[0] for table in tables} == {13**2, 7**2, 3**2}
    assert all(table.abs().max() > 0.05 for table in tables)


def test_image_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*weights\.pth"):
        sifa.create_model("sifa_resnet18", pretrained=f"imagenet:{path}", **SMALL)
    path.write_bytes(b"no weights")
    with pytest.raises(RuntimeError, match=r"weights\.pth cannot be read as weights of torch\.save"):
        sifa.create_model("sifa_resnet18", pretrained=f"imagenet:{path}", **SMALL)
    torch.save([1, 2], path)
    with pytest.raises(RuntimeError, match="holds no state dict"):
        sifa.create_model("sifa_resnet18", pretrained=f"imagenet:{path}", **SMALL)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(RuntimeError, match="no key of theirs is one of its own"):
        sifa.create_model("sifa_resnet18", pretrained=f"imagenet:{path}", **SMALL)
    torch.save(timm.create_model("resnet50").state_dict(), path)
    with pytest.raises(
        RuntimeError, match=r"layer1.0.conv1.weight: the model has \(64, 64, 3, 3\), the weights"
    ):
        sifa.create_model("sifa_resnet18", pretrained=f"imagenet:{path}", **SMALL)


# --- Folders and the hub ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = sifa.create_model("sifa_tiny", kernel_size=5, **SMALL).eval()
    torch.nn.init.normal_(model.backbone.layer2[1].conv2.inserted.conv_offset.weight)
    model.labels = list("abcde")
    model.frame_stride, model.mean = 3, (0.1, 0.2, 0.3)
    model.save_pretrained(tmp_path / "saved" / "tiny")
    return model, tmp_path / "saved" / "tiny"


def clip(num_frames=8):
    return torch.randn(1, 3, num_frames, 64, 64, generator=torch.Generator().manual_seed(2))


def test_round_trip(saved):
    model, folder = saved
    again = sifa.from_pretrained(folder).eval()
    for attribute in ("name", "config", "labels", "frame_stride", "mean", "std", "crop_fraction"):
        assert getattr(again, attribute) == getattr(model, attribute)
    assert torch.equal(again(clip()), model(clip()))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_round_trip_of_two_heads(tmp_path):
    model = sifa.create_model("sifa_resnet18", **SMALL).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(sifa.from_pretrained(tmp_path).eval()(clip()), model(clip()))


def test_another_number_of_classes_replaces_the_head(saved):
    model, folder = saved
    again = sifa.from_pretrained(folder, num_classes=3, num_frames=16).eval()
    assert again(clip(16)).shape == (1, 3)
    assert again.config["num_classes"] == 3
    assert again.labels == ["class_0", "class_1", "class_2"]
    for wrong in (0, -1, True):
        with pytest.raises(ValueError, match=f"num_classes must be an integer of at least 1, got {wrong}"):
            sifa.from_pretrained(folder, num_classes=wrong)
    stem = (again.backbone.conv1.weight, model.backbone.conv1.weight)
    assert torch.equal(*stem)


def test_the_hub(saved, tmp_path, monkeypatch):
    import huggingface_hub

    model, folder = saved
    asked = []

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return shutil.copy(folder / name, tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    again = sifa.from_pretrained("owner/tiny", revision="v1").eval()
    assert torch.equal(again(clip()), model(clip()))
    assert asked == [("owner/tiny", "config.json", "v1"), ("owner/tiny", "model.safetensors", "v1")]


def test_what_a_folder_must_hold(saved, tmp_path):
    _, folder = saved
    with pytest.raises(
        FileNotFoundError, match="there is no folder nowhere, and a hub repository is named owner"
    ):
        sifa.from_pretrained("nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it holds no model of save_pretrained"):
        sifa.from_pretrained(empty)
    config = json.loads((folder / "config.json").read_text())
    bad_options = ({"groups": "a"}, {"name": "sifa_tiny"}, {"pretrained": "motion"}, {"num_classes": 0}, [])
    for bad in (
        "{",
        "[]",
        "{}",
        json.dumps({**config, "labels": 3}),
        *(json.dumps({**config, "config": options}) for options in bad_options),
    ):
        (folder / "config.json").write_text(bad)
        with pytest.raises(ValueError, match=r"config\.json is no configuration of a SIFA model"):
            sifa.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "labels": ["a"]}))
    with pytest.raises(ValueError, match="names 1 labels for 5 classes"):
        sifa.from_pretrained(folder)


def test_weights_that_differ(saved):
    model, folder = saved
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    del state["head.bias"]
    state["neck.weight"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match="missing: head.bias\n  unexpected: neck.weight"):
        sifa.from_pretrained(folder)
    with pytest.warns(UserWarning, match="loaded what fits of sifa_tiny\n  missing: head.bias"):
        again = sifa.from_pretrained(folder, strict=False)
    assert torch.equal(again.head.weight, model.head.weight)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match=r"model\.safetensors is not a safetensors file"):
        sifa.from_pretrained(folder)
