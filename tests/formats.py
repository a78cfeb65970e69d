"""Short files of many formats, for tests of what reads them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Container, codec of the pictures and of the sound, options of the container.
VIDEOS = {
  "mp4": ("mp4", "mpeg4", "aac", {}),
  "faststart": ("mp4", "mpeg4", "aac", {"movflags": "faststart"}),
  "fragments": ("mp4", "mpeg4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
  "dash": ("mp4", "mpeg4", "aac", {"movflags": "dash+frag_every_frame"}),
  "mov": ("mov", "mjpeg", "pcm_s16le", {}),
  "3gp": ("3gp", "mpeg4", "aac", {}),
  "mkv": ("matroska", "mpeg4", "aac", {}),
  "live mkv": ("matroska", "mpeg4", "aac", {"live": "1"}),
  "webm": ("webm", "libvpx", "libopus", {}),
  "avi": ("avi", "mpeg4", "libmp3lame", {}),
  "flv": ("flv", "flv1", "libmp3lame", {}),
  "asf": ("asf", "mpeg4", "libmp3lame", {}),
  "ts": ("mpegts", "mpeg4", "aac", {}),
  "m2ts": ("mpegts", "mpeg4", "aac", {"mpegts_m2ts_mode": "1"}),
  "y4m": ("yuv4mpegpipe", "rawvideo", None, {}),
  "gif": ("gif", "gif", None, {}),
  "apng": ("apng", "apng", None, {}),
  "webp": ("webp", "libwebp_anim", None, {}),
}
SOUNDS = {
  "m4a": ("ipod", None, "aac", {}),
  "opus": ("ogg", None, "libopus", {}),
  "oga": ("ogg", None, "flac", {}),
  "wav": ("wav", None, "pcm_s16le", {}),
  "w64": ("w64", None, "pcm_s16le", {}),
  "rf64": ("wav", None, "pcm_s16le", {"rf64": "always"}),
  "aiff": ("aiff", None, "pcm_s16be", {}),
  "au": ("au", None, "pcm_s16be", {}),
  "caf": ("caf", None, "pcm_s16le", {}),
  "mp3": ("mp3", None, "libmp3lame", {}),
  "mp3 without a count": ("mp3", None, "libmp3lame", {"write_xing": "0"}),
  "mp2": ("mp2", None, "mp2", {}),
  "aac": ("adts", None, "aac", {}),
  "amr": ("amr", None, "libopencore_amrnb", {}),
  "wv": ("wv", None, "wavpack", {}),
}
PIXELS = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}


def write_noise(
  path: Path, container: str, pictures: str | None, sound: str | None, options: dict[str, str]
) -> bytes:
  """A second of noise."""
  rng = np.random.default_rng(0)
  with av.open(str(path), "w", format=container, options=options) as file:
    if pictures:
      video = file.add_stream(pictures, rate=25)
      video.width, video.height, video.pix_fmt = 48, 32, PIXELS.get(pictures, "yuv420p")
    if sound:
      rate = 8000 if container == "amr" else 48000
      audio = file.add_stream(sound, rate=rate)
      audio.layout = "mono"
    if pictures:
      for number in range(25):
        noise = rng.integers(0, 255, (4, 6, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        frame = av.VideoFrame.from_ndarray(noise, "rgb24").reformat(format=video.pix_fmt)
        frame.pts, frame.time_base = number, Fraction(1, 25)
        file.mux(video.encode(frame))
      file.mux(video.encode(None))
    if sound:
      context = audio.codec_context
      resampler = av.AudioResampler(context.format.name, "mono", rate, frame_size=context.frame_size or 1024)
      waveform = (rng.standard_normal(rate) * 3000).astype(np.int16)
      frame = av.AudioFrame.from_ndarray(waveform[None], "s16", "mono")
      frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
      for piece in resampler.resample(frame) + resampler.resample(None):
        file.mux(audio.encode(piece))
      file.mux(audio.encode(None))
  return path.read_bytes()
