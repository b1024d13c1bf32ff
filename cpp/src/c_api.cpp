// libsifa_c.so: the C API, over the C++ one. No exception leaves a function of it.
#include <algorithm>
#include <cstdio>
#include <new>
#include <string>

#include "sifa/classifier.h"
#include "sifa/sifa.h"
#include "sifa/stream.h"

struct sifa_classifier {
  sifa::Classifier own;
};

struct sifa_streams {
  sifa::StreamBatch own;
};

namespace {

using sifa::Error;
using sifa::ErrorCode;

// They are the same numbers: of the first and the last by this, of those between by their order.
static_assert(SIFA_OTHER == static_cast<int>(ErrorCode::kOther));
static_assert(SIFA_OUT_OF_MEMORY == static_cast<int>(ErrorCode::kOutOfMemory));

// Of a fixed size: out of memory has to be said, too.
thread_local char last_error[1024] = "";

sifa_status fail(ErrorCode code, const char* message) {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return static_cast<sifa_status>(code);
}

template <typename Function>
sifa_status guarded(Function function) {
  try {
    function();
    return SIFA_OK;
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kOther, "out of memory");
  } catch (const std::exception& error) {
    return fail(ErrorCode::kOther, error.what());
  } catch (...) {
    return fail(ErrorCode::kOther, "unknown error");
  }
}

// Refuses null pointers: name, pointer, name, pointer, ...
void require() {}
template <typename... Rest>
void require(const char* name, const void* pointer, Rest... rest) {
  if (pointer == nullptr) throw Error(ErrorCode::kInvalidArgument, std::string(name) + " must not be NULL");
  require(rest...);
}

void require_room(std::size_t needed, std::size_t capacity) {
  if (capacity >= needed) return;
  throw Error(ErrorCode::kInvalidArgument, "probabilities must have room for " + std::to_string(needed) +
                                               " numbers, got a capacity of " + std::to_string(capacity));
}

sifa::ClassifierOptions options(const char* device, int threads) {
  return {device == nullptr ? "cpu" : device, threads};
}

// What both handles can say of their model.

template <typename Handle>
sifa_status num_labels(const Handle* handle, std::size_t* count) {
  return guarded([&] {
    require("the handle", handle, "count", count);
    *count = handle->own.labels().size();
  });
}

template <typename Handle>
sifa_status label_of(const Handle* handle, std::size_t index, const char** label) {
  return guarded([&] {
    require("the handle", handle, "label", label);
    const std::vector<std::string>& labels = handle->own.labels();
    if (index >= labels.size()) {
      throw Error(ErrorCode::kInvalidArgument, "there is no label " + std::to_string(index) + ": there are " +
                                                   std::to_string(labels.size()) + ", counted from 0");
    }
    *label = labels[index].c_str();
  });
}

template <typename Handle>
sifa_status metadata_of(const Handle* handle, const char** json) {
  return guarded([&] {
    require("the handle", handle, "json", json);
    *json = handle->own.metadata().json.c_str();
  });
}

}  // namespace

const char* sifa_version() { return SIFA_VERSION; }

const char* sifa_last_error() { return last_error; }

// --- Clips ------------------------------------------------------------------------------------------------

sifa_status sifa_classifier_create(const char* path, const char* device, int threads,
                                   sifa_classifier** classifier) {
  return guarded([&] {
    require("path", path, "classifier", classifier);
    *classifier = new sifa_classifier{sifa::Classifier(path, options(device, threads))};
  });
}

void sifa_classifier_destroy(sifa_classifier* classifier) { delete classifier; }

sifa_status sifa_classifier_num_labels(const sifa_classifier* classifier, size_t* count) {
  return num_labels(classifier, count);
}

sifa_status sifa_classifier_label(const sifa_classifier* classifier, size_t index, const char** label) {
  return label_of(classifier, index, label);
}

sifa_status sifa_classifier_metadata(const sifa_classifier* classifier, const char** json) {
  return metadata_of(classifier, json);
}

sifa_status sifa_classifier_classify(const sifa_classifier* classifier, const uint8_t* frames, int64_t clips,
                                     int64_t num_frames, int64_t height, int64_t width, float* probabilities,
                                     size_t capacity) {
  return guarded([&] {
    require("classifier", classifier, "frames", frames, "probabilities", probabilities);
    if (clips > 0) require_room(static_cast<std::size_t>(clips) * classifier->own.labels().size(), capacity);
    const std::vector<float> rows = classifier->own.classify({frames, clips, num_frames, height, width});
    std::copy(rows.begin(), rows.end(), probabilities);
  });
}

sifa_status sifa_classifier_classify_video(const sifa_classifier* classifier, const char* path,
                                           float* probabilities, size_t capacity) {
  return guarded([&] {
    require("classifier", classifier, "path", path, "probabilities", probabilities);
    require_room(classifier->own.labels().size(), capacity);
    const std::vector<float> row = classifier->own.classify(std::string(path)).probabilities;
    std::copy(row.begin(), row.end(), probabilities);
  });
}

// --- Streams ----------------------------------------------------------------------------------------------

sifa_status sifa_streams_create(const char* path, size_t count, const char* device, int threads,
                                int64_t frame_stride, int64_t hop, sifa_streams** streams) {
  return guarded([&] {
    require("path", path, "streams", streams);
    const sifa::StreamOptions own{options(device, threads), frame_stride, hop};
    *streams = new sifa_streams{sifa::StreamBatch(path, count, own)};
  });
}

void sifa_streams_destroy(sifa_streams* streams) { delete streams; }

sifa_status sifa_streams_num_labels(const sifa_streams* streams, size_t* count) {
  return num_labels(streams, count);
}

sifa_status sifa_streams_label(const sifa_streams* streams, size_t index, const char** label) {
  return label_of(streams, index, label);
}

sifa_status sifa_streams_metadata(const sifa_streams* streams, const char** json) {
  return metadata_of(streams, json);
}

sifa_status sifa_streams_push(sifa_streams* streams, size_t stream, const uint8_t* frame, int64_t height,
                              int64_t width, int* is_due) {
  return guarded([&] {
    require("streams", streams, "frame", frame, "is_due", is_due);
    *is_due = streams->own.push(stream, {frame, height, width}) ? 1 : 0;
  });
}

sifa_status sifa_streams_run(sifa_streams* streams, int64_t* newest, float* probabilities, size_t capacity) {
  return guarded([&] {
    require("streams", streams, "newest", newest, "probabilities", probabilities);
    const std::size_t classes = streams->own.labels().size();
    require_room(streams->own.size() * classes, capacity);
    const auto predictions = streams->own.run();
    for (std::size_t i = 0; i < predictions.size(); ++i) {
      newest[i] = predictions[i] ? predictions[i]->frame : -1;
      if (!predictions[i]) continue;
      const std::vector<float>& row = predictions[i]->probabilities;
      std::copy(row.begin(), row.end(), probabilities + i * classes);
    }
  });
}

sifa_status sifa_streams_reset(sifa_streams* streams, size_t stream) {
  return guarded([&] {
    require("streams", streams);
    streams->own.reset(stream);
  });
}

sifa_status sifa_streams_save(const sifa_streams* streams, size_t stream, uint8_t* bytes, size_t capacity,
                              size_t* size) {
  return guarded([&] {
    require("streams", streams, "size", size);
    const std::vector<std::uint8_t> saved = streams->own.save(stream);
    if (bytes != nullptr && capacity < saved.size()) {
      throw Error(ErrorCode::kInvalidArgument, "bytes must have room for " + std::to_string(saved.size()) +
                                                   " bytes, got a capacity of " + std::to_string(capacity));
    }
    if (bytes != nullptr) std::copy(saved.begin(), saved.end(), bytes);
    *size = saved.size();
  });
}

sifa_status sifa_streams_restore(sifa_streams* streams, size_t stream, const uint8_t* bytes, size_t size) {
  return guarded([&] {
    require("streams", streams, "bytes", bytes);
    streams->own.restore(stream, {bytes, bytes + size});
  });
}
