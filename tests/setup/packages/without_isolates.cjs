// Directus loads isolated-vm, which is compiled when it is installed. Migrations do not run scripts in it.
const Module = require("module");
const load = Module._load;
Module._load = function (request, ...rest) {
  return /isolated_vm$/.test(request) ? {} : load.call(this, request, ...rest);
};
