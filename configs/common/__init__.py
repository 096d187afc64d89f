"""Ground shared by all packages: files, locks, exit codes, progress, numbers on pages."""
