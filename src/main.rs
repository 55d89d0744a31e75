//! The command line: run, check, schema, top, simulate.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use stagedoor::settings::{self, Secret, Simulated, SimulatedDialect};
use stagedoor::startup::Application;
use stagedoor::top::{self, Source};
use stagedoor::words::several;
use stagedoor::{simulate, telemetry};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A self-hosted LLM gateway: applications speak the OpenAI API to one address.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file; default settings/stagedoor.yaml.
    #[arg(long, global = true, env = "STAGEDOOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (the default).
    Run,
    /// Validate the configuration without serving; exit code 1 if it is refused.
    Check,
    /// Print the JSON Schema of the configuration.
    Schema,
    /// Show the state of a running gateway in this terminal, live.
    Top {
        /// Address of the gateway; without it, the one that the configuration is of.
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// Admin token, or one that may only look; without it, that of the configuration.
        #[arg(long, env = "STAGEDOOR_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
        token: Option<String>,
        /// Print the state once and end.
        #[arg(long)]
        once: bool,
    },
    /// Serve the simulated provider on a port of its own.
    Simulate {
        /// Wire format of the answers; default openai, or what the behaviour says.
        #[arg(long, value_parser = ["openai", "anthropic", "google"])]
        dialect: Option<String>,
        /// Port on the loopback interface; 0 picks a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Behaviour as JSON, with the keys of a simulated backend's config in the form `stagedoor schema` shows.
        #[arg(long, value_name = "JSON", default_value = "{}")]
        behaviour: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Schema) => {
            say(&format!("{:#}", settings::schema::json_schema()));
            Ok(())
        }
        Some(Command::Check) => check(arguments.config.as_deref()),
        Some(Command::Top { url, token, once }) => show(arguments.config.as_deref(), url, token, once),
        Some(Command::Simulate { dialect, port, behaviour }) => serve_simulated(dialect.as_deref(), port, &behaviour),
        Some(Command::Run) | None => run(arguments.config.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "there may be no subscriber yet")]
fn complain(text: &str) {
    eprintln!("{text}");
}

fn check(config: Option<&Path>) -> anyhow::Result<()> {
    let settings = settings::load(config)?;
    for note in &settings.notes {
        say(&format!("note: {note}"));
    }
    say(&format!("{}: valid, {}", settings.source, several(settings.backends.len() as u64, "backend")));
    Ok(())
}

fn run(config: Option<&Path>) -> anyhow::Result<()> {
    let settings = settings::load(config)?;
    let telemetry = telemetry::init(&settings)?;
    actix::System::new().block_on(async move {
        let application = Application::start(settings)?;
        let stopper = application.stopper();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // A terminal that is closed, and what some managers send to reload: it ends in order, and may be started again.
        let mut hangup = signal(SignalKind::hangup())?;
        let mut quit = signal(SignalKind::quit())?;
        let serving = application.serve();
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended.map_err(Into::into),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
        let drain = stopper.drain();
        tokio::pin!(drain);
        tokio::select! {
            _ = async { loop { let _ = (&mut serving).await; std::future::pending::<()>().await; } } => {}
            _ = &mut drain => return Ok(()),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
        let cut = stopper.cut().await;
        anyhow::bail!("stopped at once by a second signal; requests cut: {cut}")
    })?;
    telemetry.flush();
    Ok(())
}

fn show(config: Option<&Path>, url: Option<String>, token: Option<String>, once: bool) -> anyhow::Result<()> {
    let token = token.filter(|token| !token.is_empty()).map(|token| Secret::new(&token));
    let source = match url {
        Some(address) => Source { address, token },
        None => {
            let source = Source::of(&settings::load(config)?);
            Source { token: token.or(source.token), ..source }
        }
    };
    actix::System::new().block_on(top::run(source, once))
}

fn serve_simulated(dialect: Option<&str>, port: u16, behaviour: &str) -> anyhow::Result<()> {
    let behaviour: Simulated = settings::simulated_from_json(behaviour, dialect).map_err(anyhow::Error::msg)?;
    // Clients of the other dialects add the version themselves.
    let base = if behaviour.dialect == SimulatedDialect::OpenAi { "/v1" } else { "" };
    let listener = TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("cannot listen on 127.0.0.1:{port}"))?;
    let address = listener.local_addr()?;
    actix::System::new().block_on(async move {
        let server = simulate::server::serve(listener, behaviour)?;
        say(&format!("listening on http://{address}{base}"));
        let handle = server.handle();
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = server => ended?,
            _ = terminate.recv() => handle.stop(false).await,
            _ = tokio::signal::ctrl_c() => handle.stop(false).await,
        }
        Ok(())
    })
}
