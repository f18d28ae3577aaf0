"""The system: the verbs of the AutoPod article over stackfs, launcher and ckpt."""
