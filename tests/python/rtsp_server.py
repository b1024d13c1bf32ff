"""An RTSP server of a red test picture, by GStreamer: `python3 rtsp_server.py` prints its port and serves.

It runs in the system's Python, which has GStreamer's bindings.
"""

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
server = GstRtspServer.RTSPServer(service="0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=red ! video/x-raw,width=64,height=48,framerate=25/1 ! "
    "x264enc tune=zerolatency key-int-max=5 ! rtph264pay name=pay0 )"
)
server.get_mount_points().add_factory("/red", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
