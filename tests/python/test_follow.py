"""sifa-run on streams: every source and sink on loopback, with real servers, that die and come back.

The model says how red, green and blue its frames are, so that no source can mix up colours. Nothing here
waits for a certain time: a source is followed until it has answered, and all is bounded by `TIMEOUT`.
"""

import contextlib
import http.server
import json
import os
import resource
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import make_colour_models
from make_runtime_data import make_videos, pattern, stream_model
from PIL import Image
from programs import (
    TIMEOUT,
    Following,
    command,
    find_sifa_run,
    follow,
    is_sure,
    on_a_terminal,
    parsed,
    refused,
)
from sifa.artifact import export_torchscript
from sifa.data.motion import write_video
from torchcodec.decoders import VideoDecoder

RED = np.zeros((8, 48, 64, 3), np.uint8)
RED[..., 0] = 255
TEST_SOURCE = "gst://videotestsrc pattern=red {options} ! video/x-raw,width=64,height=48,framerate=25/1"

pytestmark = pytest.mark.usefixtures("runtime_module")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("follow")
    make_colour_models(folder)
    export_torchscript(stream_model(), folder / "stream.pt", kind="streaming")
    make_videos(folder)
    write_video(folder / "red.mkv", torch.from_numpy(RED), lossless=True)
    (folder / "images").mkdir()
    for i, frame in enumerate(pattern(12, 40, 48)):
        Image.fromarray(frame).save(folder / "images" / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def gstreamer():
    """Whether the system has the parts of GStreamer that the servers are made of; CI must."""
    parts = ("videotestsrc", "x264enc", "rtph264pay", "mpegtsmux", "ximagesink")
    has = shutil.which("gst-inspect-1.0") and all(
        subprocess.run(["gst-inspect-1.0", part], capture_output=True).returncode == 0 for part in parts
    )
    if not has and "CI" not in os.environ:
        pytest.skip("needs GStreamer's plugins: make build-tests installs them")
    assert has


def test_nothing_that_is_read_is_written_over(data, tmp_path):
    video = shutil.copy(data / "clip.mp4", tmp_path)
    (tmp_path / "link.mp4").symlink_to(video)
    before = Path(video).read_bytes()
    for sink in (video, tmp_path / "link.mp4", f"{tmp_path}/../{tmp_path.name}/clip.mp4"):
        assert "is the same file as SOURCE" in refused(data / "stream.pt", video, sink)
    model = shutil.copy(data / "stream.pt", tmp_path / "model.mp4")
    assert "is the same file as MODEL" in refused(model, video, model)
    assert Path(video).read_bytes() == before


def test_a_decision_ends_where_a_stream_begins(data, tmp_path):
    """As frames of another size do: what comes before them is none of their history."""
    pale = np.full((40, 40, 3), 128, np.uint8)
    pale[..., 0] = 160
    for i in range(12):
        Image.fromarray(RED[0] if i < 6 else pale).save(tmp_path / f"{i:02}.png")
    predictions, _ = follow(data / "colour.pt", tmp_path, "--decide", "0.8", "0.4")
    decisions = {line["frame"]: line["decision"] for line in predictions}
    assert decisions[5] == "red"
    late = predictions[-1]
    assert late["frame"] == 11
    assert 0.4 < late["classes"][0]["probability"] < 0.8
    assert late["decision"] is None


def test_a_reader_that_goes_leaves_a_whole_video(data, tmp_path):
    """As `| head -1` does."""
    images = tmp_path / "images"
    images.mkdir()
    for i, frame in enumerate(pattern(200, 40, 48)):
        Image.fromarray(frame).save(images / f"{i:03}.png")
    sink = tmp_path / "annotated.mp4"
    process = subprocess.Popen(
        command(data / "stream.pt", images, sink), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(TIMEOUT) == 1
    assert b"cannot be written to standard output" in process.stderr.read()
    process.stderr.close()
    assert len(VideoDecoder(sink)) > 0


def expected(model, frames, **options):
    from sifa import runtime

    stream = runtime.Stream(model, **options)
    return [answer for answer in map(stream.push, frames) if answer is not None]


def assert_same(predictions, answers):
    assert [p["frame"] for p in predictions] == [a.frame for a in answers]
    for prediction, answer in zip(predictions, answers, strict=True):
        probabilities = {c["index"]: c["probability"] for c in prediction["classes"]}
        np.testing.assert_allclose([probabilities[i] for i in range(3)], answer.probabilities, atol=1e-5)


# --- What ends: files, folders, standard input ----------------------------------------------------------


def test_a_file_through_both_kinds_of_model(data):
    frames = pattern(11, 20, 30)
    predictions, summary = follow(data / "stream.pt", data / "clip.mkv")
    assert_same(predictions, expected(data / "stream.pt", frames))
    assert summary["frames"] == {"in": 11, "used": 11, "dropped": 0}
    assert (summary["predictions"], summary["reconnections"]) == (2, 0)
    assert summary["latency_ms"]["p50"] <= summary["latency_ms"]["p95"] <= summary["latency_ms"]["p99"]
    predictions, _ = follow(data / "colour.pt", data / "clip.mkv", "--stream", "--hop", 2)
    assert_same(predictions, expected(data / "colour.pt", frames, hop=2))
    predictions, _ = follow(data / "colour.pt", data / "clip.mkv", "-", "--frame-stride", 3)
    assert_same(predictions, expected(data / "colour.pt", frames, frame_stride=3))


def test_a_folder_of_images(data):
    predictions, summary = follow(data / "stream.pt", data / "images")
    assert_same(predictions, expected(data / "stream.pt", pattern(12, 40, 48)))
    assert summary["frames"]["in"] == 12


def test_a_pipe(data, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    content = (data / "clip.mkv").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,), daemon=True)
    writer.start()
    predictions, _ = follow(data / "stream.pt", tmp_path / "pipe", "--stream")
    writer.join()
    assert_same(predictions, expected(data / "stream.pt", pattern(11, 20, 30)))


def test_raw_frames_on_standard_input(data):
    frames = pattern(8, 40, 48)
    options = ("-", "--size", "48x40")
    predictions, _ = follow(data / "stream.pt", *options, input=frames.tobytes())
    assert_same(predictions, expected(data / "stream.pt", frames))


@pytest.mark.parametrize("place", ["", "file", "http"])
@pytest.mark.parametrize("degrees", [90, 180])
def test_a_rotated_file_is_upright(data, http_port, place, degrees):
    source = data / f"rotated_{degrees}.mp4"
    if place == "file":
        source = f"file://{source}"
    elif place == "http":
        source = f"http://127.0.0.1:{http_port}/{source.name}"
    predictions, _ = follow(data / "stream.pt", source)
    upright = np.rot90(pattern(11, 20, 30), -degrees // 90, (1, 2))
    assert_same(predictions, expected(data / "stream.pt", np.ascontiguousarray(upright)))


def test_frames_of_another_size_begin_anew(data, tmp_path):
    """A window never holds frames of two sizes."""
    for i, side in enumerate([8] * 6 + [12] * 5):
        Image.fromarray(np.full((side, side, 3), 20 * i, np.uint8)).save(tmp_path / f"{i:03}.png")
    predictions, _ = follow(data / "colour.pt", tmp_path)
    assert [p["frame"] for p in predictions] == [3, 4, 5, 9, 10]


def test_red_is_red(data, gstreamer, tmp_path):
    Image.fromarray(RED[0]).save(tmp_path / "0.png")
    Image.fromarray(RED[0]).save(tmp_path / "1.PNG")
    for source, options in (
        (data / "red.mkv", {}),
        (tmp_path, {}),
        ("-", {"input": RED.tobytes()}),
        (TEST_SOURCE.format(options="num-buffers=8"), {}),
    ):
        size = ("--size", "64x48") if source == "-" else ()
        model = data / "colour.pt"
        if source == tmp_path:  # of two frames only
            predictions, _ = follow(model, source, "--stream", *size, **options)
            assert predictions == []
            for i in range(2, 4):
                Image.fromarray(RED[0]).save(tmp_path / f"{i}.png")
        predictions, _ = follow(model, source, "--stream", *size, **options)
        assert predictions
        for prediction in predictions:
            assert is_sure(prediction, "red")


def test_decisions_are_held(data):
    frames = np.concatenate([RED, np.roll(RED, 1, -1), RED // 8])
    arguments = (data / "colour.pt", "-", "--size", "64x48", "--hop", 1)
    predictions, _ = follow(*arguments, "--decide", 0.8, 0.4, input=frames.tobytes())
    decisions = [prediction["decision"] for prediction in predictions]
    assert set(decisions) == {"red", "green", None}
    # Held below the threshold that it took to decide.
    assert any(p["decision"] == "red" and p["classes"][0]["probability"] < 0.8 for p in predictions)
    assert "decision" not in follow(*arguments, input=RED.tobytes())[0][0]


def test_lines_for_people(data, tmp_path):
    first, _, summary = on_a_terminal(data / "stream.pt", data / "clip.mkv")
    assert "class_" in first
    assert " ms " in first
    assert "2 predictions; frames: 11 in, 11 used, 0 dropped; latency p50 " in summary
    *_, summary = on_a_terminal(data / "stream.pt", data / "clip.mkv", tmp_path / "out.mkv")
    assert "; sink: 11 written, 0 dropped; latency p50 " in summary


# --- What is live ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_a_pipeline_is_stopped_with_a_summary(data, gstreamer, with_signal):
    following = Following(data / "colour.pt", TEST_SOURCE.format(options="is-live=true"))
    assert is_sure(following.read(3), "red")
    predictions, summary = following.stop(with_signal)
    assert summary["predictions"] == len(predictions) >= 3
    frames = summary["frames"]
    assert 0 <= frames["in"] - frames["used"] - frames["dropped"] <= 2  # what was left in the queue


def test_what_comes_too_fast_is_dropped_and_counted(data, gstreamer):
    following = Following(data / "slow.pt", TEST_SOURCE.format(options="is-live=true"))
    assert is_sure(following.read(5), "red")
    predictions, summary = following.stop()
    frames = summary["frames"]
    assert frames["dropped"] > 0
    assert 0 <= frames["in"] - frames["used"] - frames["dropped"] <= 2
    # The newest frame of a prediction lies ahead of those used by what was dropped before it.
    assert predictions[-1]["frame"] > len(predictions) + 2


def test_a_pipeline_ends(data, gstreamer):
    predictions, summary = follow(data / "colour.pt", TEST_SOURCE.format(options="num-buffers=9"))
    assert len(predictions) == summary["frames"]["in"] - 3


def test_a_pipeline_that_cannot_start_is_refused(data):
    done = subprocess.run(
        command(data / "colour.pt", "gst://nosuchthing"), capture_output=True, timeout=TIMEOUT
    )
    assert done.returncode == 8
    assert b"video cannot be opened: " in done.stderr


def test_rtsp(data, gstreamer):
    server = subprocess.Popen(
        ["/usr/bin/python3", str(Path(__file__).with_name("rtsp_server.py"))],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(server.stdout.readline())
        following = Following(data / "colour.pt", f"rtsp://127.0.0.1:{port}/red")
        assert is_sure(following.read(3), "red")
        following.stop()
    finally:
        server.kill()
        server.wait()


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def encoder(*output, options=(), picture="color=red:"):
    """FFmpeg on a picture without end, as MPEG-TS unless the output says otherwise."""
    arguments = [
        "ffmpeg",
        "-loglevel",
        "error",
        *options,
        "-f",
        "lavfi",
        "-i",
        f"{picture}size=64x48:rate=25",
    ]
    return [*arguments, "-c:v", "mpeg2video", "-g", "5", "-f", "mpegts", *output]


def test_mpeg_ts_over_udp_with_loss(data):
    sent, received = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_DGRAM)
    done = threading.Event()

    def relay():
        """Loses every seventh packet."""
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as from_,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to,
        ):
            from_.bind(("127.0.0.1", sent))
            from_.settimeout(0.1)
            count = 0
            while not done.is_set():
                try:
                    packet = from_.recv(65536)
                except TimeoutError:
                    continue
                count += 1
                if count % 7:
                    to.sendto(packet, ("127.0.0.1", received))

    thread = threading.Thread(target=relay)
    thread.start()
    sender = subprocess.Popen(encoder(f"udp://127.0.0.1:{sent}?pkt_size=376", options=["-re"]))
    try:
        following = Following(data / "colour.pt", f"udp://127.0.0.1:{received}")
        assert is_sure(following.read(10), "red")
        following.stop()
    finally:
        sender.kill()
        sender.wait()
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def some_seconds():
    """The bytes of an MPEG-TS."""
    return subprocess.run(encoder("-", options=["-t", "3"]), capture_output=True, check=True).stdout


def serve(content, port):
    """Sends the content to the first that connects, and hangs up."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(TIMEOUT)
        connection, _ = server.accept()
        with connection:
            connection.sendall(content)


def test_a_server_that_dies_and_returns(data, some_seconds):
    port = free_port()
    first = threading.Thread(target=serve, args=(some_seconds, port))
    first.start()
    following = Following(data / "colour.pt", f"tcp://127.0.0.1:{port}?listen=0")
    assert is_sure(following.read(), "red")
    first.join()
    second = threading.Thread(target=serve, args=(some_seconds, port))
    second.start()  # while it knocks in vain
    second.join()
    third = threading.Thread(target=serve, args=(some_seconds, port))
    third.start()
    third.join()  # it has come back twice
    predictions, summary = following.stop()
    assert summary["reconnections"] >= 1
    # A window that begins with the second connection: three frames of it say nothing.
    gaps = [b["frame"] - a["frame"] for a, b in zip(predictions, predictions[1:], strict=False)]
    assert max(gaps) >= 4


def test_a_server_that_does_not_return_is_given_up(data, some_seconds):
    port = free_port()
    server = threading.Thread(target=serve, args=(some_seconds, port))
    server.start()
    following = Following(data / "colour.pt", f"tcp://127.0.0.1:{port}", "-", "--give-up-after", "1")
    code, summary, errors = following.fail()
    server.join()
    assert code == 8
    assert summary["frames"]["in"] > 10
    assert "does not answer with a stream" in errors
    assert errors.count("\n") == 1


@pytest.fixture(scope="module")
def recording(data):
    """Four seconds that change; the predictions of its file."""
    content = encoder("-f", "matroska", "-y", data / "recording.mkv", options=["-t", "4"], picture="testsrc=")
    subprocess.run(content, check=True)
    return follow(data / "colour.pt", data / "recording.mkv", "-")[0]


def facts(predictions):
    return [(p["frame"], p["classes"]) for p in predictions]


@contextlib.contextmanager
def served(folder, context=None):
    """The port of a server of the folder, by TLS if it has a context."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def http_port(data):
    with served(data) as port:
        yield port


def test_a_recording_over_https(data, recording, tmp_path):
    """Of a server that vouches for itself."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with served(data, context) as port:
        predictions, _ = follow(data / "colour.pt", f"https://127.0.0.1:{port}/recording.mkv")
    assert facts(predictions) == facts(recording)


def test_a_recording_over_http_is_read_once_and_whole(data, recording, http_port):
    predictions, summary = follow(data / "colour.pt", f"http://127.0.0.1:{http_port}/recording.mkv")
    assert facts(predictions) == facts(recording)
    assert summary["frames"] == {"in": 100, "used": 100, "dropped": 0}
    assert summary["reconnections"] == 0


def serve_http(chunks, port, length=None, pause=0.0):
    """Answers the first that connects, and goes; the answer may state more than it holds."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(TIMEOUT)
        connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        stated = "" if length is None else f"Content-Length: {length}\r\n"
        try:
            connection.sendall(f"HTTP/1.1 200 OK\r\n{stated}\r\n".encode())
            for chunk in chunks:
                connection.sendall(chunk)
                time.sleep(pause)
        except OSError:
            pass  # it has hung up


def test_a_recording_goes_on_where_its_server_died(data, recording):
    content = (data / "recording.mkv").read_bytes()
    port = free_port()
    first = threading.Thread(target=serve_http, args=([content[: len(content) // 2]], port, len(content)))
    first.start()
    following = Following(data / "colour.pt", f"http://127.0.0.1:{port}/recording.mkv")
    following.read()
    first.join()
    second = threading.Thread(target=serve_http, args=([content], port, len(content)))
    second.start()
    predictions, summary = following.finish()
    second.join()
    assert facts(predictions) == facts(recording)
    assert summary["reconnections"] == 1


def test_a_live_stream_over_http(data):
    """Whose header promises sound that never comes: FFmpeg would wait for 90 seconds of it. Sent fast."""
    flv = encoder("-c:v", "flv", "-f", "flv", "-", options=["-t", "60"])
    content = bytearray(subprocess.run(flv, capture_output=True, check=True).stdout)
    content[4] = 0b101  # video and audio
    size = len(content) // 300
    port = free_port()
    chunks = [content[i : i + size] for i in range(0, len(content), size)]
    server = threading.Thread(target=serve_http, args=(chunks, port, None, 0.05))
    server.start()
    following = Following(data / "colour.pt", f"http://127.0.0.1:{port}/live.flv")
    assert is_sure(following.read(3), "red")
    _, summary = following.stop()
    server.join()
    assert summary["reconnections"] == 0
    assert summary["frames"]["in"] >= 6


# --- Sinks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.avi"])
def test_an_annotated_file(data, tmp_path, name):
    frames = np.full((10, 120, 160, 3), 128, np.uint8)
    size = ("--size", "160x120")
    predictions, summary = follow(data / "colour.pt", "-", tmp_path / name, *size, input=frames.tobytes())
    assert len(predictions) == 7
    assert summary["sink"] == {"written": 10, "dropped": 0}
    written = VideoDecoder(tmp_path / name, dimension_order="NHWC").get_frames_in_range(0, 10).data.numpy()
    assert written.shape == frames.shape
    # Grey until there is something to say; then light and dark letters.
    assert np.abs(written[0].astype(int) - 128).max() < 20
    assert written[9].max() > 200
    assert written[9].min() < 60


def test_a_sink_that_nobody_reads_holds_nothing_up(data, gstreamer, tmp_path):
    """A pipe whose other end is open, and never read: it takes seven frames of this size."""
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        following = Following(
            data / "colour.pt",
            TEST_SOURCE.format(options="is-live=true"),
            f"gst://filesink location={tmp_path}/pipe",
        )
        assert is_sure(following.read(40), "red")
        following.process.send_signal(signal.SIGTERM)
        code, summary, errors = following.fail()
    finally:
        os.close(end)
    assert code == 1
    assert "has taken nothing for 10 seconds" in errors
    assert errors.count("\n") == 1
    assert summary["predictions"] >= 40
    assert summary["sink"]["dropped"] > 0
    # But for the one that it hangs with.
    assert summary["sink"]["written"] + summary["sink"]["dropped"] == summary["frames"]["used"] - 1


def test_mpeg_ts_as_a_sink(data, gstreamer):
    """From one sifa-run to another, which joins in the middle."""
    port = free_port(socket.SOCK_DGRAM)
    sender = Following(
        data / "colour.pt", TEST_SOURCE.format(options="is-live=true"), f"udp://127.0.0.1:{port}"
    )
    sender.read(10)
    receiver = Following(data / "colour.pt", f"udp://127.0.0.1:{port}")
    assert is_sure(receiver.read(3), "red")
    receiver.stop()
    sender.stop()


def test_nothing_grows_while_a_live_source_is_written(data, gstreamer, tmp_path):
    """A soak, shortened: 160 predictions in 25 seconds, looked at after a quarter and at the end."""

    def resident():
        """Megabytes that are the process's own."""
        status = Path(f"/proc/{following.process.pid}/status").read_text()
        (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
        return int(kilobytes) / 1e3

    following = Following(
        data / "stream.pt", TEST_SOURCE.format(options="is-live=true"), tmp_path / "annotated.mkv"
    )
    following.read(40)
    before = resident()
    following.read(120)
    after = resident()
    _, summary = following.stop()
    assert summary["predictions"] >= 160
    assert after < before + 8


def test_rtp_as_a_sink(data, gstreamer, tmp_path):
    """Of frames with odd sides, received by FFmpeg that joins in the middle."""
    port = free_port(socket.SOCK_DGRAM)
    description = f"v=0\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    (tmp_path / "red.sdp").write_text(description)
    source = "gst://videotestsrc pattern=red is-live=true ! video/x-raw,width=161,height=121,framerate=25/1"
    sender = Following(data / "colour.pt", source, f"rtp://127.0.0.1:{port}")
    assert is_sure(sender.read(3), "red")
    arguments = ["-protocol_whitelist", "file,udp,rtp", "-i", tmp_path / "red.sdp", "-frames:v", "30"]
    done = subprocess.run(
        ["ffmpeg", *arguments, "-vf", "showinfo", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        timeout=TIMEOUT,
    )
    sender.stop()
    assert b"yuv420p" in done.stderr  # what decoders in hardware and browsers can
    assert done.stderr.count(b"iskey:1") >= 2  # of 30 frames, one every 25: nobody waits for long
    frames = np.frombuffer(done.stdout, np.uint8).reshape(30, 120, 160, 3)
    assert np.abs(frames[:, 60:].astype(int) - RED[0, 0, 0]).max() < 30
    letters = frames[:, :60].min(-1)
    assert (letters.max((1, 2)) > 150).all()


@pytest.fixture
def display(gstreamer, tmp_path):
    """An X server without a screen: its name, and a function that gives its picture."""
    if not shutil.which("Xvfb") and "CI" not in os.environ:
        pytest.skip("needs Xvfb: make build-tests installs it")
    ends = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(ends[1]), "-noreset", "-screen", "0", "160x120x24", "-fbdir", tmp_path],
        pass_fds=ends[1:],
        stderr=subprocess.DEVNULL,
    )
    os.close(ends[1])

    def picture():
        # An XWD file: words that say its size, and those of its header and colour map; then BGRX.
        content = (tmp_path / "Xvfb_screen0").read_bytes()
        header = np.frombuffer(content, ">u4", 25)
        pixels = np.frombuffer(content, np.uint8, 120 * 160 * 4, header[0] + 12 * header[19])
        return pixels.reshape(120, 160, 4)

    try:
        with os.fdopen(ends[0]) as number:
            yield f":{number.readline().strip()}", picture
    finally:
        server.kill()
        server.wait()


def test_a_window(data, display):
    name, picture = display
    following = Following(
        data / "colour.pt", TEST_SOURCE.format(options="is-live=true"), "gst://autovideosink", DISPLAY=name
    )
    for _ in range(1000):
        following.read()
        window = picture()[:48, :64, 2::-1]
        has_letters = window.min(-1).max() > 200
        if has_letters:
            break
    following.stop()
    assert has_letters
    assert (window[40:] == RED[0, 0, 0]).all()


def test_what_cannot_be_followed(data, http_port, tmp_path):
    model, video = data / "colour.pt", data / "red.mkv"
    environment = {name: value for name, value in os.environ.items() if not name.endswith("DISPLAY")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for arguments, code, message in (
        ((model, "ftp://x"), 2, 'source "ftp://x" has an unknown scheme: give a video file'),
        ((model, "rtsp://"), 2, "has nothing behind its scheme"),
        ((model, "csi://front"), 2, "must name a sensor, such as csi://0"),
        ((model, "-"), 2, "need their size (--size WIDTHxHEIGHT)"),
        ((model, "-", "--size", "64"), 2, "must be WIDTHxHEIGHT, such as 640x480, got 64"),
        ((model, video, "--stream", "--size", "64x48"), 2, "--size is of raw frames on standard input"),
        ((model, "-", "--size", "64x99999"), 2, "each 1 to 65536, got 64x99999"),
        ((model, "-", "--size", "7x7"), 8, "standard input ends within a frame: "),
        ((model, data / "nothing", "-"), 3, "video file or folder not found"),
        ((model, tmp_path / "empty"), 9, "folder has no images"),
        ((model, tmp_path), 8, "broken.png is not an image that OpenCV can decode"),
        ((model, "/dev/video99"), 8, "/dev/video99 is not there: ls /dev/video* lists the cameras"),
        ((model, "v4l2:///dev/null"), 8, "/dev/null is no camera: ls /dev/video* lists"),
        ((model, "/dev/zero", "-"), 8, "/dev/zero is not a video that OpenCV can decode"),
        ((model, tmp_path / "pipe"), 8, "is a pipe, and a clip may be sampled only from a file"),
        ((model, f"http://127.0.0.1:{http_port}/none.mp4"), 8, "is it the right address?"),
        ((model, f"tcp://127.0.0.1:{free_port()}"), 8, "does not answer with a stream"),
        ((model, f"rtsp://127.0.0.1:{free_port()}/x"), 8, "does not answer with a stream"),
        ((model, data / "text.mp4", "-"), 8, "is not a video that OpenCV can decode"),
        ((model, data / "list.TXT", "-"), 8, "is a text by its name"),
        ((model, video, tmp_path / "out.gif"), 2, "must be a video file (.mp4, .mkv, .avi), gst://PIPELINE"),
        ((model, video, tmp_path / "none" / "out.mp4"), 1, f"there is no folder {tmp_path / 'none'}"),
        ((model, video, tmp_path / "folder.mp4"), 1, "it is a folder: name a file in it"),
        ((model, video, "udp://host"), 2, "must be udp://HOST:PORT"),
        ((model, video, "rtp://127.0.0.1:65536"), 2, "HOST:PORT, with a port of 1 to 65535"),
        ((model, video, "rtp://::g:5000"), 2, "must name a host that can be reached"),
        ((model, video, "gst://autovideosink"), 2, "needs a display: set DISPLAY"),
        ((model, video, "--stream", "--hop", 5), 2, "hop must be a multiple of 1 up to 4"),
        ((model, video, "--stream", "--decide", 0.3, 0.5), 2, "must be 0 < leave <= enter <= 1"),
        ((model,), 2, "SOURCE is required"),
    ):
        done = subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            input="x" * 100,
            timeout=TIMEOUT,
            env=environment,
        )
        assert done.returncode == code, (arguments, done.stderr)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_says_nothing_is_given_up(data, tmp_path):
    """Servers that answer nothing, a port that nobody sends to, a pipe without a writer: all at a time."""
    os.mkfifo(tmp_path / "pipe")
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system accepts for it
        host = f"127.0.0.1:{server.getsockname()[1]}"
        udp = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        sources = (tmp_path / "pipe", f"http://{host}/x.mp4", f"rtsp://{host}/x", f"tcp://{host}", udp)
        for following in [Following(data / "colour.pt", source, "--stream") for source in sources]:
            code, output, errors = following.rest()
            assert (code, output) == (8, b""), following.process.args
            # A network stream has 5 seconds, and on a machine that is slow not all of them.
            assert b"is it the right address?" in errors or b"does anything send to it?" in errors
            assert errors.count(b"\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_said(data):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(data / "stream.pt", data / "clip.mkv"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
        )
    assert done.returncode == 1
    assert "cannot be written to standard output" in done.stderr


def test_a_disk_that_fills_up_is_said(data, tmp_path):
    """With one of 200 kB, which takes the right to mount it."""
    small_disk = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=200k small '{tmp_path}'"
    if subprocess.run([*small_disk, mount], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    noise = np.random.default_rng(0).integers(0, 256, (20, 120, 160, 3), np.uint8)
    for name in ("out.mp4", "out.mkv", "out.avi"):
        run = command(data / "colour.pt", "-", tmp_path / name, "--size", "160x120")
        done = subprocess.run(
            [*small_disk, f"{mount} && exec {shlex.join(run)}"],
            capture_output=True,
            input=noise.tobytes(),
            timeout=TIMEOUT,
        )
        assert done.returncode == 1
        assert b"the disk is full, and the end of the video may be missing" in done.stderr
        assert parsed(done.stdout)[1]["frames"]["in"] > 0


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.avi"])
def test_a_limit_of_file_sizes_is_said(data, tmp_path, name):
    """`ulimit -f`, beyond which a process that does not ignore SIGXFSZ ends."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 120, 160, 3), np.uint8)
    done = subprocess.run(
        command(data / "colour.pt", "-", tmp_path / name, "--size", "160x120"),
        capture_output=True,
        input=noise.tobytes(),
        timeout=TIMEOUT,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1
    assert b"may have 200000 bytes (ulimit -f), and the end of the video may be missing" in done.stderr
    assert parsed(done.stdout)[1]["frames"]["in"] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to be another user")
def test_what_this_user_may_not_read_or_write(data, tmp_path):
    """Nor is it said that it is not there."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    try:
        subprocess.run([find_sifa_run(), "--version"], capture_output=True, check=True, **nobody)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("needs a sifa-run that every user may run")
    hidden, open_to_all = tmp_path / "hidden", Path(tempfile.mkdtemp())
    hidden.mkdir(mode=0o700)
    open_to_all.chmod(0o755)
    model, video = open_to_all / "model.pt", open_to_all / "clip.mkv"
    try:
        shutil.copy(data / "stream.pt", model)
        shutil.copy(data / "clip.mkv", video)
        for arguments, code, message in (
            ((hidden / "model.pt", video), 1, "model file cannot be read: "),
            ((model, hidden / "clip.mkv"), 8, "is in a folder that this user may not look into"),
            ((model, video, open_to_all / "out.mp4"), 1, f"this user may not write to {open_to_all}: "),
        ):
            done = subprocess.run(
                command(*arguments), capture_output=True, text=True, timeout=TIMEOUT, **nobody
            )
            assert done.returncode == code, (arguments, done.stderr)
            assert message in done.stderr
            assert done.stderr.count("\n") == 1
    finally:
        shutil.rmtree(open_to_all)


def test_metadata_without_loading_the_program(data):
    done = subprocess.run(command(data / "stream.pt", "--no-exec"), capture_output=True, timeout=TIMEOUT)
    assert json.loads(done.stdout)["kind"] == "streaming"
