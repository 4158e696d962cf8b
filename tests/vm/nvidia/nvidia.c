/* Stands in for NVIDIA's kernel driver on the test machine, and has nothing of NVIDIA's in it.
 *
 * What it shares with the real one is what the kernel, udev and modprobe see: the name, the version, the PCI ids that
 * load it at boot, the modules that come with it and use it, and device nodes that keep it loaded while they are open. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci.h>

void nvidia_stand_in(void);

void nvidia_stand_in(void) {}
EXPORT_SYMBOL_GPL(nvidia_stand_in);

/* The owner is what makes an open file count as a user of the module. */
static const struct file_operations operations = {.owner = THIS_MODULE, .open = nonseekable_open};
static struct miscdevice nodes[] = {
    {.minor = MISC_DYNAMIC_MINOR, .name = "nvidiactl", .mode = 0666, .fops = &operations},
    {.minor = MISC_DYNAMIC_MINOR, .name = "nvidia0", .mode = 0666, .fops = &operations},
};

static int probe(struct pci_dev *device, const struct pci_device_id *id) { return 0; }

static const struct pci_device_id ids[] = {
    {.vendor = PCI_VENDOR_ID_NVIDIA,
     .device = PCI_ANY_ID,
     .subvendor = PCI_ANY_ID,
     .subdevice = PCI_ANY_ID,
     .class = PCI_CLASS_DISPLAY_3D << 8,
     .class_mask = ~0},
    {},
};
MODULE_DEVICE_TABLE(pci, ids);
static struct pci_driver driver = {.name = "nvidia", .id_table = ids, .probe = probe};

static int __init start(void) {
    int error = misc_register(&nodes[0]);
    if (error) return error;
    error = misc_register(&nodes[1]);
    if (error) goto no_node;
    error = pci_register_driver(&driver);
    if (error) goto no_driver;
    return 0;
no_driver:
    misc_deregister(&nodes[1]);
no_node:
    misc_deregister(&nodes[0]);
    return error;
}

static void __exit stop(void) {
    pci_unregister_driver(&driver);
    misc_deregister(&nodes[1]);
    misc_deregister(&nodes[0]);
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Stand-in for tests");
MODULE_LICENSE("GPL");
MODULE_VERSION("550.90.12");
/* As NVIDIA's packages have it in modprobe.d: modprobe then passes by what an install line says of nvidia. */
MODULE_SOFTDEP("post: nvidia_modeset nvidia_uvm");
