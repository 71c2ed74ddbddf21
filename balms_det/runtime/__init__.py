"""The running process: errors, files, memory, garbage collection, figures and the command line."""
