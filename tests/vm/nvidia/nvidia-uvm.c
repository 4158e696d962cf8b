/* The same under another name. */
#include "nvidia-modeset.c"
