"""In: frames of a video, or a folder of provided faces.
Out: one crop a frame for each person.
"""

from preprocessing.faces.detect import FaceDetector, Faces, follow_faces
from preprocessing.faces.provided import describe_provided, read_provided

__all__ = [
    "FaceDetector",
    "Faces",
    "describe_provided",
    "follow_faces",
    "read_provided",
]
