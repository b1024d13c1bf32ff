// What a SIFA model file says about itself, readable without loading its graph.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "sifa/export.h"

namespace sifa {

/// One tensor of a stream's state.
struct StateTensor {
  std::vector<std::int64_t> shape;  ///< of one stream
  std::string dtype;                ///< "float32", "float16", "bfloat16" or "int64"
};

/// What an AOTInductor package is bound to.
struct CompiledFor {
  std::string device;   ///< "cpu" or "cuda"
  std::string machine;  ///< "x86_64", "aarch64", ... as uname says
  std::string cpu;      ///< "AVX512", ... as LibTorch's get_cpu_capability says
};

/// The metadata of a model file (its entry `sifa.json`, schema version 1).
struct Metadata {
  int schema_version = 0;
  /// "clip": `num_frames` frames in, one prediction out. Of a stream, with a state in and out: "window":
  /// `num_frames` frames, then new ones, any multiple of `temporal_stride` up to `num_frames`; "streaming":
  /// always `temporal_stride` frames
  std::string kind;
  /// "torchscript", "aoti" (a package compiled by AOTInductor), or "exported" (what `sifa compile` makes one
  /// of, which this runtime cannot run)
  std::string format;
  std::string model;                ///< name of the model, as `sifa.create_model` knows it
  std::vector<std::string> labels;  ///< one per class, in the order of the probabilities
  std::int64_t num_frames = 0;      ///< length of a clip
  std::int64_t frame_stride = 0;    ///< distance between two frames of a clip, in frames of the video
  /// frames that the network takes as one step; divides `num_frames` of a window or a stream
  std::int64_t temporal_stride = 0;
  std::string sampling;  ///< "center" or "segments": see sifa/sampling.h
  /// (H, W) in pixels that the network sees after its own resize and crop
  std::array<std::int64_t, 2> input_size{};
  std::string precision;        ///< what the network computes in: "float32", "float16" or "bfloat16"
  std::string torch_version;    ///< of the torch that exported the model
  std::string sifa_version;     ///< of the SIFA that exported the model
  std::string operator_schema;  ///< of `sifa::inter_frame_attention`, as that torch's dispatcher prints it
  /// the model's output on the reference input where it was exported
  std::vector<float> reference_probabilities;
  double reference_tolerance = 0.0;  ///< how far the output may be from that elsewhere
  std::vector<StateTensor> state;    ///< of a window or a stream, else empty
  CompiledFor compiled_for;          ///< of an AOTInductor package, else empty
  /// what one clip (of a stream: one step) takes: multiplications and additions of convolutions, products of
  /// matrices and SIFA's operators, and the bytes of all weights; 0 in files that do not say
  std::int64_t operations = 0;
  std::int64_t weight_bytes = 0;
  std::string json;  ///< the whole entry as it stands in the file, UTF-8
};

/// Reads and checks the metadata of the model file `path`. The graph is not loaded and nothing of it is
/// executed; every byte of the file is read once and compared with its checksum.
///
/// Throws Error: kFileNotFound, kNotAModel, kDamagedModel, kUnsupportedSchema.
SIFA_API Metadata read_metadata(const std::string& path);

}  // namespace sifa
