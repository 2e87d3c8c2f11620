"""The microVM's host side: find a kernel, boot it, run plans in it."""
