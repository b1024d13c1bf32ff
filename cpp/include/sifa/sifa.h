/* The runtime for C, and for whatever can call C: handles, status codes, no exceptions.
 *
 * A function that can fail returns a sifa_status and gives its results through pointers, so that an error is
 * never taken for a class. On failure nothing is written through them, and sifa_last_error says why in one
 * line. A handle may be used from several threads; calls on one are serialised. Paths and labels are UTF-8 as
 * far as the system's are; strings and pointers that are given belong to the caller.
 *
 * A model file is a program: load only files that you trust as you trust code. */
#ifndef SIFA_SIFA_H
#define SIFA_SIFA_H

#include <stddef.h>
#include <stdint.h>

#include "sifa/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong; sifa/error.h says more of each. */
typedef enum sifa_status {
  SIFA_OK = 0,
  SIFA_OTHER = 1,
  SIFA_INVALID_ARGUMENT = 2,
  SIFA_FILE_NOT_FOUND = 3,
  SIFA_NOT_A_MODEL = 4,
  SIFA_DAMAGED_MODEL = 5,
  SIFA_UNSUPPORTED_SCHEMA = 6,
  SIFA_OPERATOR_LIBRARY = 7,
  SIFA_VIDEO_CANNOT_BE_OPENED = 8,
  SIFA_VIDEO_HAS_NO_FRAMES = 9,
  SIFA_DEVICE_UNAVAILABLE = 10,
  SIFA_REFERENCE_MISMATCH = 11,
  SIFA_OUT_OF_MEMORY = 12
} sifa_status;

/* The version of the library, such as "0.1.0". */
SIFA_API const char* sifa_version(void);

/* Why the last call of this thread that failed did so; "" if none has. Valid until the next one fails. */
SIFA_API const char* sifa_last_error(void);

/* --- Clips ---------------------------------------------------------------------------------------------- */

/* A loaded model of clips. */
typedef struct sifa_classifier sifa_classifier;

/* Loads a model file. `device` is "cpu", "cuda" or "cuda:<index>", or NULL for "cpu". `threads` is how many
 * threads one operation on the CPU uses, for the whole process, or 0 for LibTorch's choice. */
SIFA_API sifa_status sifa_classifier_create(const char* path, const char* device, int threads,
                                            sifa_classifier** classifier);

/* NULL is allowed. */
SIFA_API void sifa_classifier_destroy(sifa_classifier* classifier);

SIFA_API sifa_status sifa_classifier_num_labels(const sifa_classifier* classifier, size_t* count);

/* The name of a class, in the order of the probabilities; valid as long as the handle. */
SIFA_API sifa_status sifa_classifier_label(const sifa_classifier* classifier, size_t index,
                                           const char** label);

/* What the model file says about itself, JSON; valid as long as the handle. */
SIFA_API sifa_status sifa_classifier_metadata(const sifa_classifier* classifier, const char** json);

/* Probabilities (clips, labels) row by row, of RGB bytes (clips, num_frames, height, width, 3), contiguous.
 * `probabilities` has room for `capacity` numbers. */
SIFA_API sifa_status sifa_classifier_classify(const sifa_classifier* classifier, const uint8_t* frames,
                                              int64_t clips, int64_t num_frames, int64_t height,
                                              int64_t width, float* probabilities, size_t capacity);

/* Probabilities of the clip that the metadata says to sample from a video file. */
SIFA_API sifa_status sifa_classifier_classify_video(const sifa_classifier* classifier, const char* path,
                                                    float* probabilities, size_t capacity);

/* --- Streams -------------------------------------------------------------------------------------------- */

/* A loaded model of any kind, and the streams that go through it; see sifa/stream.h. */
typedef struct sifa_streams sifa_streams;

/* Loads a model file for `count` streams. `frame_stride` is every how many of the frames pushed one is used,
 * `hop` the used frames between two predictions; 0 is the model's own for both. */
SIFA_API sifa_status sifa_streams_create(const char* path, size_t count, const char* device, int threads,
                                         int64_t frame_stride, int64_t hop, sifa_streams** streams);

/* NULL is allowed. */
SIFA_API void sifa_streams_destroy(sifa_streams* streams);

SIFA_API sifa_status sifa_streams_num_labels(const sifa_streams* streams, size_t* count);
SIFA_API sifa_status sifa_streams_label(const sifa_streams* streams, size_t index, const char** label);
SIFA_API sifa_status sifa_streams_metadata(const sifa_streams* streams, const char** json);

/* Gives a stream its next frame, RGB bytes (height, width, 3), which are copied. `is_due` becomes 1 if a
 * prediction of the stream is now due, else 0. */
SIFA_API sifa_status sifa_streams_push(sifa_streams* streams, size_t stream, const uint8_t* frame,
                                       int64_t height, int64_t width, int* is_due);

/* Makes the predictions that are due. `newest` (count) says of every stream which frame is the newest in its
 * prediction, counted from 0 as pushed, or -1 where none was due; `probabilities` is (count, labels), of
 * which the rows of the others are left as they were, and has room for `capacity` numbers. */
SIFA_API sifa_status sifa_streams_run(sifa_streams* streams, int64_t* newest, float* probabilities,
                                      size_t capacity);

/* Lets a stream begin anew. */
SIFA_API sifa_status sifa_streams_reset(sifa_streams* streams, size_t stream);

/* What a stream remembers. `size` becomes the number of bytes; they are written to `bytes` if that is not
 * NULL and has room for them (`capacity`). */
SIFA_API sifa_status sifa_streams_save(const sifa_streams* streams, size_t stream, uint8_t* bytes,
                                       size_t capacity, size_t* size);

/* Continues a stream where it was saved, with the same model file and options. */
SIFA_API sifa_status sifa_streams_restore(sifa_streams* streams, size_t stream, const uint8_t* bytes,
                                          size_t size);

#ifdef __cplusplus
}
#endif

#endif
