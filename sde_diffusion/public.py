"""The names that ``sde_diffusion`` exports, each from its module; ``sde_diffusion.__all__`` lists them."""

# ruff: noqa: F401 (they are imported to be exported)

from sde_diffusion.distillation import distill
from sde_diffusion.evaluation import evaluate
from sde_diffusion.evaluation.metrics import frechet_distance
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.likelihood.dequantization import bits_per_dim
from sde_diffusion.likelihood.flow import log_likelihood
from sde_diffusion.models.analytic import EmpiricalData, Gaussian, GaussianMixture
from sde_diffusion.models.discrete import DiscreteModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.inversion import decode, encode
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import DDPM, EDM, SDE, VESDE, VPSDE, CosineVPSDE, Flow, SubVPSDE
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.solver_file import load_solver, save_solver
from sde_diffusion.training.training_run import train
from sde_diffusion.tuning import tune
