//! What the service manager is told (sd_notify(3)), if one listens.
//!
//! Always holds: the watchdog is fed only while the accept loops and the watch over the store turn.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::pulse::Pulse;

/// Everything is there, and clients are served.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The configuration is being read anew; [`ready`] ends that.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "failed to tell systemd of a reload"),
    }
}

/// It is going to end.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells systemd twice in its interval that we live.
pub(super) async fn watchdog(pulse: &Pulse) {
    match sd_notify::watchdog_enabled() {
        Some(interval) => beat(interval, pulse, || notify(&[NotifyState::Watchdog])).await,
        None => std::future::pending().await,
    }
}

/// Beats at half of `interval`, for as long as nothing is stuck.
async fn beat(interval: Duration, pulse: &Pulse, mut beats: impl FnMut()) {
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        match pulse.stuck() {
            None => beats(),
            Some(part) => {
                tracing::error!(part, "no longer turns: systemd is not told that we live")
            }
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "failed to notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_beats_stop_with_the_first_part_that_hangs() {
        let pulse = Pulse::default();
        let (lively, hanging) = (pulse.part("lively"), pulse.part("hanging"));
        let minute = Duration::from_secs(60);
        let mut count = 0;
        let turning = async |both: bool| {
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
                lively.turn();
                if both {
                    hanging.turn();
                }
            }
        };
        for (both, least, most) in [(true, 11, 13), (false, 2, 4)] {
            let before = count;
            tokio::select! {
                () = turning(both) => {}
                () = beat(Duration::from_secs(10), &pulse, || count += 1) => {}
                () = tokio::time::sleep(minute) => {}
            }
            let beats = count - before;
            assert!((least..=most).contains(&beats), "{both}: {beats}");
        }
    }
}
