from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_features import WIDTH, make_features, make_labels

from rcma.data import cut_window
from rcma.prediction import present_modalities


@pytest.mark.parametrize("alignment", ["start", "centre", "end"])
@pytest.mark.parametrize("audio", ["whole", "late", "none"])
def test_a_frame_has_what_the_model_sees(tmp_path, alignment, audio):
    features = make_features(tmp_path / "video", make_labels(70, 0), seed=0, audio=audio != "none")
    if audio == "late":
        late = np.array(features.log_mel)
        late[:50] = np.nan
        features = dataclasses.replace(features, log_mel=late)
    present = present_modalities(features, audio_alignment=alignment)
    window = cut_window(features, 0, length=70, text_width=WIDTH, audio_alignment=alignment)
    for m, there in present.items():
        np.testing.assert_array_equal(there, window[f"{m}_mask"].numpy(), err_msg=m)
        assert there.any() == (m != "audio" or audio != "none")
