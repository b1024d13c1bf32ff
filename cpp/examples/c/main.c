/* Classifies a video from C. */
#include <sifa/sifa.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  sifa_classifier* classifier = NULL;
  float* probabilities = NULL;
  size_t count = 0, best = 0, i;
  const char* label = NULL;
  sifa_status status;
  if (argc != 3) {
    fprintf(stderr, "usage: classify_c MODEL VIDEO\n");
    return SIFA_INVALID_ARGUMENT;
  }
  status = sifa_classifier_create(argv[1], "cpu", 0, &classifier);
  if (status == SIFA_OK) status = sifa_classifier_num_labels(classifier, &count);
  if (status == SIFA_OK) {
    probabilities = malloc(count * sizeof *probabilities);
    if (probabilities == NULL) count = 0; /* which is refused below */
    status = sifa_classifier_classify_video(classifier, argv[2], probabilities, count);
  }
  if (status == SIFA_OK) {
    for (i = 1; i < count; ++i) {
      if (probabilities[i] > probabilities[best]) best = i;
    }
    status = sifa_classifier_label(classifier, best, &label);
  }
  if (status == SIFA_OK) {
    printf("%s %g\n", label, probabilities[best]);
  } else {
    fprintf(stderr, "%s\n", sifa_last_error());
  }
  free(probabilities);
  sifa_classifier_destroy(classifier);
  return status;
}
