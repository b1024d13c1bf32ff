// Marks what libsifa_runtime.so exports; everything else in it is hidden.
#pragma once

#define SIFA_API __attribute__((visibility("default")))
