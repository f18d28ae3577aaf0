"""`make test-reboot`: the status service reboots a machine into a new kernel; its pods live on."""
