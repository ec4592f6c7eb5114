#!/usr/bin/env bash
# Bundles what the scene's page takes of three.js into one file that is part of
# the page: odin_jax/reporting/three. Only for a newer version of it; needs npm.
#   bash launch/bundle_three.sh
set -euo pipefail
case "${1:-}" in
  -h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
THREE=0.180.0 ESBUILD=0.25.10
target=$PWD/odin_jax/reporting/three
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo '{"private": true}' > package.json
npm install --silent --no-fund --no-audit "three@$THREE" "esbuild@$ESBUILD"
cat > entry.js <<'JS'
export {
  BufferAttribute, BufferGeometry, DoubleSide, Group, LineBasicMaterial, LineSegments, Mesh, MeshBasicMaterial,
  PerspectiveCamera, PlaneGeometry, Points, PointsMaterial, Raycaster, Scene, ShaderMaterial, SRGBColorSpace, Texture,
  Vector2, Vector3, WebGLRenderer,
} from 'three';
export { OrbitControls } from 'three/addons/controls/OrbitControls.js';
JS
npx esbuild entry.js --bundle --minify --format=iife --global-name=THREE --legal-comments=none \
  --banner:js="// three.js $THREE, MIT licence, see LICENSE; made by launch/bundle_three.sh" \
  --outfile="$target/three.js" --log-level=warning
cp node_modules/three/LICENSE "$target/LICENSE"
