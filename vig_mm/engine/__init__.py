"""Runner components: hooks, loops, optimizers, strategies; distributed launches."""
