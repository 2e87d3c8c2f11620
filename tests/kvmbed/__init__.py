"""A virtual machine with another kernel, cgroup v2 and /dev/kvm, to run tests in."""
