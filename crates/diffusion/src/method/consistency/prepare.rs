//! From a recipe to consistency distances.

use std::sync::Arc;

use diptych_models::Trainable;
use diptych_models::diffusers::PipelineDir;

use super::{Consistency, ConsistencyConfig, check_solver, section, teacher_key};
use crate::method::draws::Draws;
use crate::method::preferences::check_schedules;
use crate::method::prepare::Preparation;
use crate::method::trained::TrainedDenoiser;
use crate::pipeline::Denoiser;
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

impl Preparation<'_> {
    /// Refuses a noise schedule that has no consistency function, before anything is encoded.
    pub(in crate::method) fn check_consistency(&self, config: Option<&ConsistencyConfig>) -> Result<()> {
        let Some(config) = config else { return Ok(()) };
        let schedule = NoiseSchedule::read(self.pipeline.component("scheduler")?.path())?;
        check_solver(config, self.recipe.method.name(), &schedule).map(|_| ())
    }

    /// How consistency distances are computed, with the teacher where there is one.
    pub(in crate::method) fn consistency(
        &self,
        config: &ConsistencyConfig,
        draws: &Draws,
        policy: &TrainedDenoiser,
    ) -> Result<Arc<Consistency>> {
        let method = self.recipe.method.name();
        let teacher = match config.teacher() {
            None => None,
            Some(teacher) => {
                let key = teacher_key(method);
                let path = self.recipe.resolve_path(&key, &teacher.path)?;
                let pipeline = PipelineDir::open(&path)?;
                let denoiser = Denoiser::load(&pipeline, &self.options, Trainable::None, None)?.0;
                check_schedules(&policy.denoiser, &denoiser, &key)?;
                Some(denoiser)
            }
        };
        let rule = Consistency::new(config, method, policy.denoiser.schedule(), teacher)?;
        let unknown = draws
            .given_timesteps
            .iter()
            .flatten()
            .find(|&&timestep| !rule.knows(timestep));
        if let Some(timestep) = unknown {
            return Err(Error::Recipe {
                key: format!("{}.solver_steps", section(method)),
                problem: format!("leaves out timestep {timestep}, which the data carries"),
                hint: "use as many steps as the data was made with, or leave `timesteps` out of it".into(),
            });
        }
        Ok(Arc::new(rule))
    }
}
