"""All methods. Importing this package registers them; a method is one line here."""

from distill.methods import alp_kd as alp_kd
from distill.methods import annealing_kd as annealing_kd
from distill.methods import ckd as ckd
from distill.methods import continuation_kd as continuation_kd
from distill.methods import diito as diito
from distill.methods import distilbert as distilbert
from distill.methods import erdistill as erdistill
from distill.methods import glmd as glmd
from distill.methods import kd as kd
from distill.methods import lrc_bert as lrc_bert
from distill.methods import mgskd as mgskd
from distill.methods import minilm as minilm
from distill.methods import minilmv2 as minilmv2
from distill.methods import mixbaseline as mixbaseline
from distill.methods import mobilebert as mobilebert
from distill.methods import pkd as pkd
from distill.methods import rail_kd as rail_kd
from distill.methods import sid as sid
from distill.methods import theseus as theseus
from distill.methods import tinybert as tinybert
from distill.methods import universal_kd as universal_kd
