"""The proof that other processors give the bits of this one: plans run under qemu-user."""
