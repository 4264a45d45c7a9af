"""All methods. Importing this package registers them; a method is one line here."""

from distill.methods import glmd as glmd
from distill.methods import kd as kd
