/* Stands in for the module of this name: uses nvidia.ko, so that the kernel refuses to unload that one first. */
#include <linux/module.h>

void nvidia_stand_in(void);

static int __init start(void) {
    nvidia_stand_in();
    return 0;
}

static void __exit stop(void) {}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Stand-in for tests");
MODULE_LICENSE("GPL");
MODULE_VERSION("550.90.12");
