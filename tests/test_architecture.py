"""Who may import whom, read from the import statements."""

import ast
import graphlib
import pathlib

import pytest

# The plan of the house, from the ground up: every wing and the wings that it
# may import. A row names only rows above it, so that nothing can run back up.
WINGS = {
  'odin_jax.shared': [],
  # Videos -> records.
  'preprocessing.ids': ['odin_jax.shared'],
  'preprocessing.panorama': ['odin_jax.shared'],
  'preprocessing.writing': ['odin_jax.shared', 'preprocessing.ids'],
  'preprocessing.reading': ['odin_jax.shared', 'preprocessing.panorama'],
  'preprocessing.matchers': ['odin_jax.shared', 'preprocessing.panorama'],
  'preprocessing.keyframes': [
    'odin_jax.shared',
    'preprocessing.panorama',
    'preprocessing.writing.rejections',
    'preprocessing.reading',
    'preprocessing.matchers',
  ],
  'preprocessing.solving': [
    'odin_jax.shared',
    'preprocessing.writing.rejections',
    'preprocessing.matchers',
  ],
  'preprocessing.views': [
    'odin_jax.shared',
    'preprocessing.panorama',
    'preprocessing.writing',
    'preprocessing.reading',
    'preprocessing.keyframes',
    'preprocessing.solving',
  ],
  'preprocessing.exporting': [
    'odin_jax.shared',
    'preprocessing.panorama',
    'preprocessing.solving',
  ],
  'preprocessing.settings': [
    'odin_jax.shared',
    'preprocessing.writing',
    'preprocessing.reading',
    'preprocessing.matchers',
    'preprocessing.keyframes',
    'preprocessing.solving',
    'preprocessing.views',
    'preprocessing.exporting',
  ],
  'preprocessing.video': [
    'odin_jax.shared',
    'preprocessing.writing',
    'preprocessing.reading',
    'preprocessing.matchers',
    'preprocessing.keyframes',
    'preprocessing.solving',
    'preprocessing.views',
    'preprocessing.exporting',
    'preprocessing.settings',
  ],
  'preprocessing.running': [
    'odin_jax.shared',
    'preprocessing.ids',
    'preprocessing.writing',
    'preprocessing.reading',
    'preprocessing.matchers',
    'preprocessing.keyframes',
    'preprocessing.settings',
    'preprocessing.video',
  ],
  'preprocessing.procedural': [
    'odin_jax.shared',
    'preprocessing.panorama',
    'preprocessing.writing',
    'preprocessing.views',
    'preprocessing.running.pool',
  ],
  'preprocessing.auditing': ['odin_jax.shared', 'preprocessing.writing'],
  'preprocessing.downloading': [
    'odin_jax.shared',
    'preprocessing.ids',
    'preprocessing.reading',
  ],
  # Records -> model -> samples -> scene.
  'odin_jax.latents': ['odin_jax.shared'],
  'odin_jax.batches': ['odin_jax.shared', 'odin_jax.latents'],
  'odin_jax.encoding': [
    'odin_jax.shared',
    'odin_jax.latents',
    'odin_jax.batches',
  ],
  'odin_jax.panoramas': ['odin_jax.shared'],
  'odin_jax.sources': [
    'odin_jax.shared',
    'odin_jax.latents',
    'odin_jax.batches',
    'odin_jax.panoramas',
  ],
  'odin_jax.geometry': ['odin_jax.shared'],
  'odin_jax.benchmarks': ['odin_jax.shared', 'odin_jax.geometry'],
  'odin_jax.diffusion': [],
  'odin_jax.sharding': ['odin_jax.shared'],
  'odin_jax.models': ['odin_jax.shared', 'odin_jax.sharding'],
  'odin_jax.metrics': ['odin_jax.shared', 'odin_jax.models'],
  'odin_jax.distribution_distance': ['odin_jax.shared'],
  'odin_jax.checkpoints': [
    'odin_jax.shared',
    'odin_jax.models',
    'odin_jax.sharding',
  ],
  'odin_jax.familiarity': ['odin_jax.shared', 'odin_jax.checkpoints'],
  'odin_jax.training': [
    'odin_jax.shared',
    'odin_jax.diffusion',
    'odin_jax.models',
    'odin_jax.sharding',
    'odin_jax.checkpoints',
  ],
  'odin_jax.predictors': [
    'odin_jax.shared',
    'odin_jax.benchmarks',
    'odin_jax.geometry',
    'odin_jax.diffusion',
    'odin_jax.models',
    'odin_jax.sharding',
    'odin_jax.checkpoints',
  ],
  'odin_jax.porting': ['odin_jax.shared', 'odin_jax.models'],
  'odin_jax.planning': [
    'odin_jax.shared',
    'odin_jax.models',
    'odin_jax.sharding',
    'odin_jax.checkpoints',
    'odin_jax.training',
    'odin_jax.porting',
  ],
  'odin_jax.hosts': ['odin_jax.shared'],
  'odin_jax.scoring': [
    'odin_jax.shared',
    'odin_jax.hosts',
    'odin_jax.benchmarks',
    'odin_jax.models',
    'odin_jax.metrics',
    'odin_jax.predictors',
    'odin_jax.porting',
  ],
  'odin_jax.splatting': ['odin_jax.shared', 'odin_jax.geometry'],
  'odin_jax.generating': [
    'odin_jax.shared',
    'odin_jax.panoramas',
    'odin_jax.geometry',
    'odin_jax.benchmarks',
    'odin_jax.predictors',
  ],
  'odin_jax.held_out': [
    'odin_jax.shared',
    'odin_jax.batches',
    'odin_jax.models',
    'odin_jax.sharding',
    'odin_jax.predictors',
  ],
  'odin_jax.loop': [
    'odin_jax.shared',
    'odin_jax.batches',
    'odin_jax.models',
    'odin_jax.checkpoints',
    'odin_jax.training',
    'odin_jax.hosts',
    'odin_jax.held_out',
    'odin_jax.planning.costs',
  ],
  'odin_jax.reporting': ['odin_jax.shared', 'odin_jax.benchmarks'],
  'odin_jax.evaluating': [
    'odin_jax.shared',
    'odin_jax.hosts',
    'odin_jax.geometry',
    'odin_jax.benchmarks',
    'odin_jax.models',
    'odin_jax.metrics',
    'odin_jax.distribution_distance',
    'odin_jax.sharding',
    'odin_jax.predictors',
    'odin_jax.scoring',
    'odin_jax.reporting',
  ],
  'odin_jax.experimenting': ['odin_jax.shared', 'odin_jax.geometry'],
  'odin_jax.serving': [
    'odin_jax.shared',
    'odin_jax.geometry',
    'odin_jax.generating',
  ],
  # A matcher's options stand with the matcher.
  'configs': ['preprocessing.matchers'],
}
ENTRY_POINTS = [
  'preprocessing.worlds',
  'preprocessing.true_views',
  'preprocessing.true_depth',
  'preprocessing.download',
  'preprocessing.run',
  'preprocessing.records',
  'preprocessing.fps_experiment',
  'preprocessing.audit',
  'odin_jax.plan',
  'odin_jax.train',
  'odin_jax.cache_latents',
  'odin_jax.evaluate',
  'odin_jax.evaluate_meshes',
  'odin_jax.consistency',
  'odin_jax.generate',
  'odin_jax.reconstruct',
  'odin_jax.splat',
  'odin_jax.report',
  'odin_jax.serve',
  'odin_jax.experiments',
  'odin_jax.reconstruction_experiment',
  'odin_jax.port_weights',
]
TORCH_FILES = 'odin_jax.porting.torch_files'
# Third-party package -> where it may be imported; True: only inside functions.
RESTRICTED = {
  # Checkpoints of torch are read and written in one file of odin_jax.
  'torch': (('preprocessing', TORCH_FILES), True),
  # Models of COLMAP are read in one file of odin_jax.
  'pycolmap': (('preprocessing', 'odin_jax.benchmarks.colmap_model'), True),
  # Only what renders or scores meshes needs it.
  'embreex': (('odin_jax.geometry.meshes',), True),
  # Only what serves needs a server.
  'starlette': (('odin_jax.serving',), False),
  'uvicorn': (('odin_jax.serve',), False),
  'ray': (('preprocessing',), True),
  'jax': (('odin_jax',), False),
  'flax': (('odin_jax',), False),
  'optax': (('odin_jax',), False),
  'orbax': (('odin_jax',), False),
  'grain': (('odin_jax',), False),
}
FORBIDDEN = ['tensorflow', 'torchvision', 'diffusers', 'transformers']


def modules(repository: pathlib.Path) -> dict[str, pathlib.Path]:
  paths = {}
  for package in ('odin_jax', 'preprocessing', 'configs'):
    for path in sorted((repository / package).rglob('*.py')):
      parts = path.relative_to(repository).with_suffix('').parts
      paths['.'.join(parts).removesuffix('.__init__')] = path
  return paths


def imports(path: pathlib.Path) -> list[tuple[str, bool]]:
  """(imported name, whether inside a function) of every import statement."""
  tree = ast.parse(path.read_text())
  inside = {
    child
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in ast.walk(node)
  }
  names = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names += [(alias.name, node in inside) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names += [
        (f'{node.module}.{alias.name}', node in inside) for alias in node.names
      ]
  return names


def within(name: str, prefix: str) -> bool:
  return name == prefix or name.startswith(prefix + '.')


OWN = ('odin_jax', 'preprocessing', 'configs')


def own_imports(path: pathlib.Path) -> list[str]:
  return [name for name, _ in imports(path) if name.split('.')[0] in OWN]


@pytest.mark.parametrize('wing', WINGS)
def test_a_wing_imports_only_what_flows_into_it(repository, wing):
  rooms = {
    name: path
    for name, path in modules(repository).items()
    if within(name, wing)
  }
  assert rooms, f'{wing} holds no module'
  unused = set(WINGS[wing])
  for name, path in rooms.items():
    for imported in own_imports(path):
      # `from odin_jax.shared import camera` reads odin_jax.shared.camera.
      flows = [w for w in [wing, *WINGS[wing]] if within(imported, w)]
      assert flows, f'{name} imports {imported}'
      unused -= set(flows)
  assert not unused, f'{wing} imports nothing of {sorted(unused)}'


def test_no_import_runs_back_up():
  names = list(WINGS)
  for index, (wing, allowed) in enumerate(WINGS.items()):
    for prefix in allowed:
      assert any(within(prefix, below) for below in names[:index]), (
        f'{wing} may import {prefix}, which does not lie below it'
      )


def test_every_file_has_a_wing_or_is_a_command(repository):
  packages = {'odin_jax', 'preprocessing'}
  for name in modules(repository):
    places = [wing for wing in (*WINGS, *ENTRY_POINTS) if within(name, wing)]
    assert len(places) == 1 or name in packages, f'{name}: {places}'


def test_files_import_each_other_in_no_circle(repository):
  paths = modules(repository)
  uses = {
    name: {
      # A module, or a name of one.
      imported if imported in paths else imported.rpartition('.')[0]
      for imported in own_imports(path)
    }
    for name, path in paths.items()
  }
  # Raises CycleError with the files that go round.
  tuple(graphlib.TopologicalSorter(uses).static_order())


def test_nothing_imports_an_entry_point(repository):
  for name, path in modules(repository).items():
    for imported, _ in imports(path):
      for entry in ENTRY_POINTS:
        assert not within(imported, entry), f'{name} imports {imported}'


def test_only_configs_import_configs(repository):
  for name, path in modules(repository).items():
    if not within(name, 'configs'):
      for imported, _ in imports(path):
        assert not within(imported, 'configs'), f'{name} imports {imported}'


def test_heavy_packages_stay_in_their_stage(repository):
  for name, path in modules(repository).items():
    for imported, is_lazy in imports(path):
      top = imported.split('.')[0]
      assert top not in FORBIDDEN, f'{name} imports {imported}'
      if top in RESTRICTED:
        places, must_be_lazy = RESTRICTED[top]
        # The shared room serves hosts that have neither stage's packages.
        assert any(within(name, place) for place in places), (
          f'{name} imports {imported}'
        )
        assert not within(name, 'odin_jax.shared'), f'{name} imports {imported}'
        assert is_lazy or not must_be_lazy, f'{name} imports {imported} on top'


def test_diffusion_knows_jax_only(repository):
  for name, path in modules(repository).items():
    if within(name, 'odin_jax.diffusion'):
      for imported, _ in imports(path):
        assert imported.split('.')[0] not in ('flax', 'optax', 'orbax'), name


def test_top_level_is_fixed(repository):
  allowed = {
    'README.md',
    'LICENSE',
    'requirements.txt',
    'odin_jax',
    'preprocessing',
    'configs',
    'launch',
    'tests',
  }
  ignored = {'runs', '__pycache__'}
  names = {
    entry.name
    for entry in repository.iterdir()
    if not entry.name.startswith('.') and entry.name not in ignored
  }
  assert names == allowed
