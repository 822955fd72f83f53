"""Images from disk to training batches, through NVIDIA DALI. Imported as `fasttrain.pipelines` alone."""

if __name__ != "fasttrain.pipelines":
    raise ImportError("import fasttrain.pipelines: the top-level name 'pipelines' is not this project's")
