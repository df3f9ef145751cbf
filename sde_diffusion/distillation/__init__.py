"""Students: models that need one to four evaluations, distilled from a score model or trained from data.

``distill`` trains them. A student is a ``ScoreModel`` whose ``sampler`` is the solver it was made for; ``sample`` uses
it unless another solver is named.
"""

from sde_diffusion.distillation.consistency import ConsistencyLoss as ConsistencyLoss
from sde_diffusion.distillation.denoising_gan import DenoisingGANLoss as DenoisingGANLoss
from sde_diffusion.distillation.dreamfusion import score_distillation as score_distillation
from sde_diffusion.distillation.progressive import ProgressiveLoss as ProgressiveLoss
from sde_diffusion.distillation.students import distill as distill

__all__ = ["ConsistencyLoss", "DenoisingGANLoss", "ProgressiveLoss", "distill", "score_distillation"]
