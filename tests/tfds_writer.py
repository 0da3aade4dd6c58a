"""Writes TFDS folders by TFDS's own writer, in the order of the records."""

import numpy as np
from etils import epath


def write_tfds(folder, splits):
    """The folder of a data set with features `text` and `meta` = {`language`, `n`}.

    Args:
      splits: name -> (language, text) of each record.
    """
    import tensorflow_datasets

    features = tensorflow_datasets.features

    class Texts(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        pkg_dir_path = epath.Path(folder)  # where it looks for a README

        def _info(self):
            inner = {"language": features.Text(), "n": features.Scalar(np.int64)}
            return self.dataset_info_from_configs(
                features=features.FeaturesDict({"text": features.Text(), "meta": inner}),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {name: self._generate_examples(records) for name, records in splits.items()}

        def _generate_examples(self, records):
            for i, (language, text) in enumerate(records):
                yield i, {"text": text, "meta": {"language": language, "n": i}}

    folder.mkdir(exist_ok=True)
    builder = Texts(data_dir=folder / "data", file_format="array_record")
    builder.download_and_prepare()
    return epath.Path(builder.data_dir)
