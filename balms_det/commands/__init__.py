"""The commands of `balms-det`, one module each; the scripts in tools/ are thin faces of them."""
