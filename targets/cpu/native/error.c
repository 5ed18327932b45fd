// The message of the last failure, one a thread.

#include <stdio.h>

#include "internal.h"

static _Thread_local char message[512] = "no error";

const char *dsv3c_error(void) { return message; }

dsv3c_status dsv3c_fail(dsv3c_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}
