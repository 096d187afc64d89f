"""The subcommands of `replica`, by theme: the arguments of each stand beside what it does."""
