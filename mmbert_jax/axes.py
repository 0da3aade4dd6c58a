"""The axes of the device mesh, and what is spread over which: rows, heads, and the dimensions of parameters."""

AXES = ("data", "fsdp", "tensor")

# Rows of a batch go over two axes, since fsdp is data parallelism whose parameters are sharded too.
BATCH_AXES = ("data", "fsdp")
HEADS_AXIS = "tensor"

# Logical name of a parameter's dimension -> axis. Dimensions that are not named here are whole on every device.
RULES = {"vocab": "tensor", "heads": HEADS_AXIS, "mlp": "tensor", "embed": "fsdp"}
