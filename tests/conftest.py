"""What all tests run under."""

import os

# Before jax is imported; a machine with an accelerator runs its own tests with JAX_PLATFORMS set.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

# Meshes of up to eight devices in this process; not by XLA_FLAGS, which the programs that tests start would inherit.
jax.config.update("jax_num_cpu_devices", 8)
