"""In: frames of a video, or a folder of provided faces.
Out: one crop per frame for each person.
"""

from preprocessing.faces.crop import Faces
from preprocessing.faces.detect import FaceDetector
from preprocessing.faces.follow import follow_faces
from preprocessing.faces.provided import describe_provided, read_provided

__all__ = [
    "FaceDetector",
    "Faces",
    "describe_provided",
    "follow_faces",
    "read_provided",
]
